"""Tables of the report: rows of text cells, numbers with their intervals, names for people."""

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


def cell(value: Mapping[str, Any] | None, key: str = "mean", signed: bool = False, percent: bool = False) -> str:
    if value is None or value[key] is None:
        return "–"
    scale, form = (100, ".1f") if percent else (1, "+.3f" if signed else ".3f")
    shown = f"{value[key] * scale:{form}}".replace("-", "−")
    if value["low"] is None or value["high"] is None:
        return shown
    form = form.lstrip("+")
    return f"{shown} [{value['low'] * scale:{form}}, {value['high'] * scale:{form}}]".replace("-", "−")


def p_value(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def shown_name(model: str) -> str:
    names = {
        "most_frequent": "baseline: most frequent report",
        "copy_prior": "baseline: copy the prior report",
        "retrieval": "baseline: retrieval by indication",
        "sft": "SFT",
        "rl_step1": "RL step 1",
        "rl_step2": "RL step 2",
    }
    return names.get(model, model)
