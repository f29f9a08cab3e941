"""One part of the report: a heading, a sentence, a figure and its tables."""

from __future__ import annotations

from dataclasses import dataclass, field

from matplotlib.figure import Figure

from evaluation.tables import Table


@dataclass
class Part:
    """One section: words, a figure with its tables, or the reason why the figure is absent."""

    id: str
    title: str
    text: str = ""
    figure: Figure | None = None
    tables: list[Table] = field(default_factory=list)
    absent: str = ""
    points: list[str] = field(default_factory=list)  # what the numbers say, one sentence each
    note: str = ""  # how to read the figure
    svg: str = ""  # made from the figure when it is saved


def part(
    identity: str, title: str, text: str, figure: Figure | None, absent: str, tables: list[Table] | None = None
) -> Part:
    return Part(identity, title, text, figure, tables or [], absent if figure is None else "")
