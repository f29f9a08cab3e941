"""Tables of the report: rows of text cells, numbers with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass
class Table:
    """Rows of text cells; `folded` is the summary line under which the table is folded away."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    folded: str = ""


def listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


def cell(value: Mapping[str, Any] | None, key: str = "mean", signed: bool = False, percent: bool = False) -> str:
    if value is None or value[key] is None:
        return "–"
    scale, form = (100, ".1f") if percent else (1, "+.3f" if signed else ".3f")
    shown = f"{value[key] * scale:{form}}".replace("-", "−")
    if value["low"] is None or value["high"] is None:
        return shown
    form = form.lstrip("+")
    return f"{shown} [{value['low'] * scale:{form}}, {value['high'] * scale:{form}}]".replace("-", "−")


def with_p(value: Mapping[str, Any] | None, key: str = "difference", signed: bool = True) -> str:
    """A difference with its interval and Holm-corrected p: `+0.028 [0.013, 0.045], p 0.004`."""
    if value is None or value[key] is None:
        return "–"
    p = p_value(value["p_holm"], value.get("p_at_floor", False))
    return cell(value, key, signed=signed) + ("" if p == "–" else f", p {p}")


def p_value(value: float | None, at_floor: bool = False) -> str:
    """`at_floor`: so few patients differ that no smaller p was possible; said, so that it isn't read as no difference."""
    if value is None:
        return "–"
    return ("< 0.001" if value < 0.001 else f"{value:.3f}") + (" (no smaller one possible)" if at_floor else "")


def says_something(number: str, value: Mapping[str, float | None] | None) -> bool:
    """Whether a number can be read: one over a mean cannot where the mean's interval reaches zero, as it jumps there."""
    if not number.startswith("1/") or value is None or value["mean"] is None:
        return True
    return value["mean"] > 0 and value["low"] is not None
