"""One HTML file for a run: summary, figures with their tables, how each number was made, and a study browser.

    python -m evaluation report --outputs outputs/demo

The file opens offline and loads nothing. Report texts are untrusted: Jinja escapes what it prints, the studies are JSON
with every `<`, `>` and `&` escaped, the page's script writes them as text, and a content policy allows that one script.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from evaluation import statistics
from evaluation.browser import BROWSER_STUDIES, browser_content
from evaluation.case_studies import case_studies
from evaluation.figure_style import save
from evaluation.material import collect
from evaluation.provenance import how_it_was_made, lead, notices
from evaluation.rollout_table import rollout_section
from evaluation.run_folder import read_run
from evaluation.sections import report_parts
from evaluation.side_files import side_parts
from evaluation.summary import summarise_run
from foundation.files import write_text

_PAGE = Path(__file__).with_name("page")


def write_report(
    outputs: Path,
    data_dir: Path | None = None,
    browser_studies: int = BROWSER_STUDIES,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> Path:
    """Write `report.html`, and each figure as PNG and SVG in `figures/`; returns the report's path.

    Raises:
        EvaluationError: nothing has been scored, or scores that cannot be pooled.
    """
    run = read_run(outputs)
    material = collect(run, summarise_run(outputs, resamples, seed), resamples, seed)
    parts = [*report_parts(material), *side_parts(outputs)]
    if browser_studies:  # none: a report without texts
        parts += case_studies(run, material.headline)
    for part in parts:
        if part.figure is not None:
            part.svg = save(part.figure, outputs / "figures", part.id)
    script = (_PAGE / "report.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_PAGE), autoescape=True, trim_blocks=True)
    environment.filters["with_interval"] = with_interval
    html = environment.get_template("report.html.jinja").render(
        title=f"Report of {outputs.name}",
        lead=lead(material),
        notices=notices(
            material, unusual=sum(len(t.rows) for t in parts[0].tables if t.caption == "Unusual predictions")
        ),
        parts=parts,
        rollouts=rollout_section(outputs, data_dir),
        made=how_it_was_made(material, data_dir),
        browser=browser_content(run, material.headline, data_dir, browser_studies, seed),
        style=(_PAGE / "report.css").read_text(encoding="utf-8"),
        script=script,
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    path = outputs / "report.html"
    write_text(path, html)
    return path


def with_interval(cell: str) -> Markup:
    """A table cell with its interval set smaller, so that a narrow column may break before it and nowhere else."""
    match = re.fullmatch(r"(.*?) (\[[−\d., ]+\])(.*)", cell)
    if not match:
        return escape(cell)
    return Markup('{} <span class="interval">{}{}</span>').format(*match.groups())
