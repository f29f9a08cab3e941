"""The report's table of sampled rollouts: what the reward saw in training and what it gave, beside the images.

Training keeps a sample at each log (`<stage>/rollouts/step-*.parquet`) and, where a monitor stopped it, the rollouts that
show why (`tripped-*.parquet`). Texts are untrusted: Jinja escapes them; images are read inside the data folder only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup

from evaluation.browser import data_uri
from evaluation.names import shown_name, shown_number
from foundation.errors import EvaluationError, read_record
from rewards.chexprompt.judgement import ERROR_TYPES

LOGS = 6  # shown of a stage, evenly over its run, the first and the last among them
ROLLOUTS_A_LOG = 4
_PART = "part/"  # prefix of the columns with the reward's parts

_TEMPLATE = """\
<section id="rollouts">
<h2>Sampled rollouts</h2>
<p class="hint">What the reward saw in training: for some studies the best and the worst rewarded of its rollouts. A step is
the number of updates done when they were generated. Parts are unweighted.</p>
{% for stage in stages %}
<details><summary>{{ stage.title }}: {{ stage.rows | length }} of {{ stage.total }} kept rollouts</summary>
<div class="scroll"><table class="wide">
<thead><tr><th scope="col">step</th><th scope="col">image, prior</th><th scope="col">reference</th>
<th scope="col">prior report</th><th scope="col">rollout</th><th scope="col">reward</th><th scope="col">judge</th></tr></thead>
<tbody>
{% for row in stage.rows %}<tr><th scope="row">{{ row.step }}</th>
<td>{% for uri in row.images %}<img src="{{ uri }}" width="96" alt="{{ row.study_id }}"> {% else %}–{% endfor %}</td>
<td class="long">{{ row.reference }}</td><td class="long">{{ row.prior_report or "–" }}</td>
<td class="long">{{ row.candidate }}</td>
<td>{{ row.reward }}{% for part in row.parts %}<br>{{ part }}{% endfor %}</td>
<td>{% for count in row.judge %}{{ count }}<br>{% else %}–{% endfor %}</td></tr>
{% endfor %}</tbody>
</table></div>
{% if stage.missing %}<p class="hint">{{ stage.missing }} images could not be shown: absent, unreadable or outside of the
data folder (--data_dir says where the data lie).</p>{% endif %}</details>
{% endfor %}
</section>
"""


def rollout_section(outputs: Path, data_dir: Path | None = None) -> Markup:
    """The section as HTML, `LOGS` × `ROLLOUTS_A_LOG` rollouts a stage at most; empty where no stage kept any.

    Args:
        data_dir: where the data sets lie now; default: where training read them.

    Raises:
        EvaluationError: a file of rollouts cannot be read.
    """
    stages = []
    for folder in sorted({path.parent.parent for path in outputs.glob("*/rollouts/*.parquet")}):
        for pattern, title in (("step-*", "{}"), ("tripped-*", "{}, stopped by a monitor")):
            files = sorted((folder / "rollouts").glob(f"{pattern}.parquet"))
            if files:
                rows = [row for file in _spread(files, LOGS) for row in _spread(_rows(file), ROLLOUTS_A_LOG)]
                shown = [_shown(row, _trained_on(folder), data_dir) for row in rows]
                total = sum(pq.read_metadata(file).num_rows for file in files)
                missing = sum(row["missing"] for row in shown)
                title = title.format(shown_name(folder.name))
                stages.append({"title": title, "rows": shown, "total": f"{total:,}", "missing": missing})
    if not stages:
        return Markup("")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True)
    return Markup(environment.from_string(_TEMPLATE).render(stages=stages))


def _spread(items: Sequence[Any], limit: int) -> list[Any]:
    """At most `limit` items, evenly spaced, the first and the last among them."""
    chosen = np.linspace(0, len(items) - 1, min(limit, len(items))).round().astype(int)
    return [items[index] for index in chosen]


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        return pq.read_table(file).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise EvaluationError(f"{file} is not a readable file of rollouts ({error}); remove it") from error


def _trained_on(stage: Path) -> Path | None:
    """The data folder that a stage trained from; None where it does not say."""
    path = stage / "settings.json"
    if not path.is_file():
        return None
    return Path(read_record(path).get("data_dir", "data"))


def _shown(row: Mapping[str, Any], trained_on: Path | None, data_dir: Path | None) -> dict[str, Any]:
    """A row of the table in words; images that are not in the data folder any more are left out."""
    paths = [Path(path) for path in (row["image"], row["prior_image"]) if path]
    uris = []
    for path in paths:
        if trained_on is not None and path.is_relative_to(trained_on):
            root = data_dir if data_dir is not None else trained_on
            uris.append(data_uri(root, str(path.relative_to(trained_on))))
    images = [uri for uri in uris if uri]
    parts = {name.removeprefix(_PART): value for name, value in row.items() if name.startswith(_PART)}
    judge = []
    for kind in ("significant", "insignificant"):
        counts = row[f"judge_{kind}"]
        if counts is not None:
            named = [
                f"{count} {error.replace('_', ' ')}" for error, count in zip(ERROR_TYPES, counts, strict=True) if count
            ]
            judge.append(f"{sum(counts)} {kind}" + (f": {', '.join(named)}" if named else ""))
    return {
        **{name: row[name] for name in ("step", "study_id", "reference", "prior_report", "candidate")},
        "images": images,
        "missing": len(paths) - len(images),
        "reward": "none: the judge failed" if row["reward"] is None else f"{row['reward']:.3f}",
        "parts": [f"{shown_number(name)} {value:.2f}" for name, value in parts.items() if value is not None],
        "judge": judge,
    }
