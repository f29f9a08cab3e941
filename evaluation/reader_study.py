"""A reader study: one offline page on which a radiologist counts the errors of blinded reports by CheXprompt's types.

    python -m evaluation reader-study --outputs outputs/demo --models sft rl_step2 --studies 50 --out outputs/demo/reader_study

The folder gets `reader_study.html` for the readers, and what stays here: `key.json` (which report is whose), `pairs.jsonl` (the
same reports for `python -m rewards judge`) and, where a judge has rated them all, its counts in `judge.jsonl`. A reader's
export and a judge's counts go into `python -m rewards judge-agreement READER.json judge.jsonl`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from evaluation.browser import data_uri, scored_lines, script_json
from evaluation.run_folder import Run, read_run
from foundation.errors import EvaluationError
from foundation.files import write_json, write_text
from rewards.chexprompt.judgement import ERROR_TYPES
from rewards.chexprompt.parse import TYPE_TITLES

FORMAT = "reader-study-1"
IMAGE_SIZE, IMAGE_QUALITY = 1024, 85
_PAGE = Path(__file__).with_name("page")
# What each type is, in the judge's own order (rewards/chexprompt/rubric.py).
EXPLAINED = (
    "a finding that the reference does not have",
    "a finding of the reference that is left out",
    "the right finding on another side or in another place",
    "the right finding in another size, degree or extent",
    "a change since an earlier study that the reference does not state",
    "a change, or the lack of one, that is left out",
)


def write_reader_study(
    outputs: Path, models: Sequence[str], studies: int, out: Path, data_dir: Path | None = None, seed: int = 0
) -> dict[str, Any]:
    """Write the page and its companions; returns what was made: `page`, `studies`, `reports`, `without_image`, `judged`.

    Studies are drawn from those of which every model has a report; reports of a study come in random order, under codes.

    Raises:
        EvaluationError: a model that is not there, or no study that all have.
    """
    run = read_run(outputs)
    if missing := [model for model in models if model not in run.models]:
        raise EvaluationError(f"{', '.join(missing)} has no scores in {outputs}; there are {', '.join(run.models)}")
    if len(set(models)) != len(models):
        raise EvaluationError(f"--models names a model twice: {' '.join(models)}")
    rng = random.Random(seed)
    chosen = _draw(_shared_lines(run, models), models, studies, rng)
    shown, key, pairs, judged = [], {}, [], []
    for lines in chosen:
        order = list(models)
        rng.shuffle(order)
        study = lines[models[0]]
        candidates = []
        for model in order:
            line = lines[model]
            code = f"{rng.getrandbits(40):010x}"
            candidates.append({"id": code, "text": line["candidate"]})
            key[code] = {"model": model, "dataset": line["dataset"], "study_id": line["study_id"]}
            pairs.append(
                {"id": code, "reference": line["reference"], "candidate": line["candidate"], "source": line["dataset"]}
            )
            judged.append(_counts(code, line.get("judge")))
        shown.append(_shown(study, run.data_folder(study["dataset"], data_dir)) | {"candidates": candidates})
    fingerprint = hashlib.sha256(json.dumps([shown, seed], sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
    page = out / "reader_study.html"
    out.mkdir(parents=True, exist_ok=True)
    write_text(page, _page(shown, fingerprint[:16]))
    write_json(out / "key.json", {"format": FORMAT, "study": fingerprint[:16], "seed": seed, "reports": key})
    write_text(out / "pairs.jsonl", "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs))
    has_judge = all(row is not None for row in judged)
    if has_judge:
        write_text(out / "judge.jsonl", "".join(json.dumps(row) + "\n" for row in judged))
    else:
        (out / "judge.jsonl").unlink(missing_ok=True)  # of an earlier study, whose codes were others
    without = sum(study["image"] is None for study in shown)
    return {
        "page": page, "studies": len(shown), "reports": len(pairs), "without_image": without, "judged": has_judge,
    }  # fmt: skip


def _shared_lines(run: Run, models: Sequence[str]) -> list[Mapping[str, Mapping[str, Any]]]:
    """The scored lines by model, of each study of which every model has a report that is not blank; in a fixed order."""
    studies: dict[tuple[str, str], dict[str, Any]] = {}
    for index, line in scored_lines(run):
        if (model := run.models[index]) in models and line["candidate"].strip():
            studies.setdefault((line["dataset"], line["study_id"]), {})[model] = line
    return [lines for _, lines in sorted(studies.items()) if len(lines) == len(models)]


def _draw(
    shared: Sequence[Mapping[str, Any]], models: Sequence[str], studies: int, rng: random.Random
) -> Sequence[Mapping[str, Any]]:
    if not shared:
        raise EvaluationError(f"no study has a report by each of {', '.join(models)}; score them on the same data set")
    if len(shared) < studies:
        raise EvaluationError(
            f"--studies {studies}: {len(shared)} studies have a report by each of {', '.join(models)}; ask for at most these"
        )
    return rng.sample(list(shared), studies)


def _counts(code: str, judge: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A judge's counts as a line of ratings; None where it has not rated this report."""
    if judge is None:
        return None
    parts = {part: dict(zip(ERROR_TYPES, judge[part], strict=True)) for part in ("significant", "insignificant")}
    return {"id": code, **parts}


def _shown(line: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """What a reader sees of a study besides the reports to be rated; no name of it."""
    images = {
        name: data_uri(folder, line[name], IMAGE_SIZE, IMAGE_QUALITY) if folder and line.get(name) else None
        for name in ("image", "prior_image")
    }
    return {
        "image": images["image"],
        "priorImage": images["prior_image"],
        "prior": line.get("prior_report"),
        "indication": line.get("indication"),
        "reference": line["reference"],
    }


def _page(shown: Sequence[Mapping[str, Any]], fingerprint: str) -> str:
    script = (_PAGE / "reader_study.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_PAGE), autoescape=True, trim_blocks=True)
    data = {"format": FORMAT, "study": fingerprint, "errorTypes": ERROR_TYPES, "studies": shown}
    return environment.get_template("reader_study.html.jinja").render(
        types=list(zip("abcdef", TYPE_TITLES, EXPLAINED, strict=True)),
        style=(_PAGE / "reader_study.css").read_text(encoding="utf-8"),
        script=script,
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=script_json(data),
    )
