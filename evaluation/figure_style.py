"""How every figure looks: colours of models, axes, error bars, legends, and how it is saved."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.names import short_name
from settings.evaluations import BASELINES

INK = "#1a2430"  # text and axes; the report turns it into the page's own text colour
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#8C6D1F", "#4B4B9B")
OTHER_COLOURS = (*COLOURS[3:4], *COLOURS[5:], "#117733", "#882255", "#44AA99", "#999933", "#661100", "#6699CC")
GREYS = ("#7d8590", "#a3aab3", "#5c636b")
PUBLISHED_COLOUR = "#b9a7d6"

Means = Mapping[str, Mapping[str, Mapping[str, float | None]]]  # model → number → {mean, low, high}


def save(figure: Figure, folder: Path, name: str) -> str:
    """Write `name`.png and `name`.svg into `folder` (atomically) and return the SVG for an HTML page.

    That one has no background and takes the page's text colour. matplotlib escapes all texts. The same figure gives the
    same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    svg, png = io.StringIO(), io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        # A date, or the software's version, would make files differ.
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
        figure.savefig(png, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    bare = svg.getvalue()
    end = bare.index(">", bare.index("<svg")) + 1
    on_white = f'{bare[:end]}<rect width="100%" height="100%" fill="white"/>{bare[end:]}'
    for path, content in ((folder / f"{name}.png", png.getvalue()), (folder / f"{name}.svg", on_white.encode())):
        temporary = path.with_name(f".{os.getpid()}.{path.name}")
        temporary.write_bytes(content)
        os.replace(temporary, path)
    return bare[bare.index("<svg") :].replace(INK, "currentColor")


@contextmanager
def drawn_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, heights: Sequence[float] | None = None
) -> Iterator[tuple[Figure, list[Axes]]]:
    style = {
        "text.parse_math": False,  # a model's name may hold a $, which begins no formula
        "font.size": 9,
        "font.family": ["DejaVu Sans", "sans-serif"],  # the second for SVG where the first is not installed
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#8a94a0",
        "grid.alpha": 0.3,
        "grid.linewidth": 0.6,
        **{key: INK for key in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")},
        "axes.titlecolor": INK,
    }
    with matplotlib.rc_context(style):
        figure, axes = plt.subplots(
            rows, columns, figsize=(width, height), layout="constrained", squeeze=False, height_ratios=heights
        )
        yield figure, list(axes.ravel())
        # Laid out once, not again for each file that it is saved to.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    plt.close(figure)  # it stays usable, but pyplot no longer holds it


def draw_dots(axis: Axes, at: Sequence[float], values: Sequence[Any], model: str, models: Sequence[str]) -> None:
    """Horizontal dots with intervals."""
    draw_points(axis, at, values, model, models, line=False, horizontal=True)


def draw_points(
    axis: Axes,
    at: Sequence[float],
    values: Sequence[Any],
    model: str,
    models: Sequence[str],
    line: bool,
    horizontal: bool = False,
) -> None:
    means = np.array([np.nan if v is None or v["mean"] is None else v["mean"] for v in values])
    errors = np.array([error_bar(v) if error_bar(v) is not None else [[0.0], [0.0]] for v in values])[:, :, 0].T
    style = {"fmt": "o-" if line else "o", "markersize": 4, "linewidth": 1, "capsize": 2, "label": short_name(model)}
    style["color"] = colour_of(model, models)
    if horizontal:
        axis.errorbar(means, at, xerr=errors, **style)
    else:
        axis.errorbar(at, means, yerr=errors, **style)


def error_bar(value: Mapping[str, float | None] | None) -> list[list[float]] | None:
    """matplotlib's error form [[below], [above]]; None without an interval."""
    if value is None or value["mean"] is None or value["low"] is None or value["high"] is None:
        return None
    return [[max(0.0, value["mean"] - value["low"])], [max(0.0, value["high"] - value["mean"])]]


def mean_of(means: Means, model: str, number: str) -> float | None:
    return (means[model].get(number) or {}).get("mean")


def change_of(now: float | None, before: float | None) -> float:
    return float("nan") if now is None or not before else 100 * (now - before) / abs(before)


def colour_of(model: str, models: Sequence[str]) -> str:
    """A model keeps its colour in all figures that show the same models."""
    if model in BASELINES:
        return GREYS[BASELINES.index(model) % len(GREYS)]
    stages = ("base", "sft", "rl_step1", "rl_step2")
    if model in stages:
        return COLOURS[(4, 1, 0, 2)[stages.index(model)]]
    others = [m for m in models if m not in BASELINES and m not in stages]
    return OTHER_COLOURS[others.index(model) % len(OTHER_COLOURS)] if model in others else OTHER_COLOURS[0]


def draw_legend(axis: Axes, outside: bool = False) -> None:
    if outside:
        axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    else:
        axis.legend(frameon=False, fontsize=8)


def hide_rest(axes: Sequence[Axes], used: int) -> None:
    for axis in axes[used:]:
        axis.set_visible(False)


def inverted(value: Mapping[str, float | None]) -> dict[str, float | None]:
    """1/x of a positive mean and its interval; no interval where that holds zero."""
    low, high = value["low"], value["high"]
    if low is None or high is None or low <= 0:
        return {"mean": 1 / value["mean"], "low": None, "high": None}
    return {"mean": 1 / value["mean"], "low": 1 / high, "high": 1 / low}
