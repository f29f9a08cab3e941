"""Reports of films that nobody has prepared: one on the command line, or many from a folder or a table.

    python -m evaluation write --model outputs/demo/rl_step2/final --image film.dcm [--prior_image F --prior_report TEXTFILE]
    python -m evaluation write --model … --folder films/ --out reports.jsonl
    python -m evaluation write --model … --source DIR --mapping mapping.yaml --out reports.jsonl

Of many, each line of the output is one study: its report, or why it has none. What is written already, by the same model and
with the same settings, is not written again.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from data_prep.dicom_headers import files_below
from data_prep.priors import none
from data_prep.source import Options, inside
from data_prep.sources import custom
from data_prep.study import report_text
from evaluation.report_lines import drop_cut_line, read_lines
from foundation.errors import EvaluationError
from foundation.files import write_text
from foundation.locks import folder_lock
from model.engines import VLLM_BATCHES
from model.report_writer import NOTICE, ReportWriter, written


@dataclass(frozen=True)
class Request:
    """One study as it is asked for; `refused` says why it can have no report, where that is known already."""

    study_id: str
    image: Path | None = None
    indication: str | None = None
    comparison: str | None = None
    prior: tuple[Path, str] | None = None
    refused: str | None = None


def print_report(writer: ReportWriter, request: Request, anyway: bool, as_json: bool) -> None:
    """Write one film's report to the terminal."""
    result = writer.write(request.image, request.indication, request.comparison, request.prior, anyway)
    print(NOTICE, file=sys.stderr)
    for reason in result.overridden:
        print(f"written anyway: {reason}", file=sys.stderr)
    if as_json:
        print(json.dumps({**asdict(result), **_made_by(writer)}, indent=1, ensure_ascii=False))
        return
    if result.findings or result.impression:
        print("\n".join(f"{n.capitalize()}: {t}" for n in ("findings", "impression") if (t := getattr(result, n))))
    else:
        print(result.report or "(the model wrote nothing)")
    if result.truncated:
        print(f"cut at {writer.settings.max_new_tokens} tokens (--max_new_tokens)", file=sys.stderr)
    seconds, form = f"{result.seconds:.1f} s", writer.made_by["films"]
    print(f"{writer.made_by['model']}, films {form}, {writer.settings.engine}, {seconds}", file=sys.stderr)


def write_many(
    writer: ReportWriter, requests: Iterable[Request], out: Path, anyway: bool, batch_size: int
) -> dict[str, int]:
    """Append a line a study to `out`; returns how many there are of each kind: written, refused, there already.

    Raises:
        EvaluationError: `out` holds reports of another model or of other settings.
    """
    made_by = _made_by(writer)
    with folder_lock(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        drop_cut_line(out)
        done = read_lines(out)
        if other := next((line for line in done if line.get("made_by") != made_by), None):
            changed = [
                key for key in made_by["settings"] | made_by if _value(other, key) != _value({"made_by": made_by}, key)
            ]
            raise EvaluationError(
                f"{out} holds reports made with another {', '.join(sorted(set(changed) - {'settings'}))}; choose another --out"
            )
        there = {line["study_id"] for line in done if line.get("report") is not None}
        left = [line for line in done if line["study_id"] in there]
        if len(left) < len(done):  # what was refused is looked at again: the film may have been mended since
            write_text(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in left))
        counts = Counter({"written": 0, "refused": 0, "there already": len(there)})
        todo = [request for request in requests if request.study_id not in there]
        size = batch_size * VLLM_BATCHES if writer.settings.engine == "vllm" else batch_size
        with out.open("a", encoding="utf-8") as file, tqdm(total=len(todo), desc="reports", unit="study") as bar:
            for start in range(0, len(todo), size):
                for line in _lines(writer, todo[start : start + size], anyway):
                    file.write(json.dumps({**line, "made_by": made_by}, ensure_ascii=False) + "\n")
                    counts["refused" if line["report"] is None else "written"] += 1
                file.flush()
                bar.update(len(todo[start : start + size]))
    return dict(counts)


def _lines(writer: ReportWriter, batch: list[Request], anyway: bool) -> Iterator[dict[str, Any]]:
    """The lines of some studies; the refused ones first."""
    studies, overridden = [], []
    for request in batch:
        try:
            if request.refused:
                raise EvaluationError(request.refused)
            study, reasons = writer.study(
                request.image, request.indication, request.comparison, request.prior, anyway, request.study_id
            )
        except EvaluationError as error:
            yield {"study_id": request.study_id, "report": None, "refused": str(error)}
            continue
        studies.append(study)
        overridden.append(reasons)
    for study, (report, truncated), reasons in zip(
        studies, writer.write_all(studies) if studies else [], overridden, strict=True
    ):
        yield {"study_id": study["study_id"], **asdict(written(report, truncated, 0.0, reasons)), "seconds": None}


def requests_of_folder(folder: Path) -> list[Request]:
    """Each file below a folder, by its path there, without text: hidden ones are left out.

    Raises:
        EvaluationError: no such folder, or nothing in it.
    """
    requests = [Request(name, folder / name) for name in files_below(folder)] if folder.is_dir() else []
    if not requests:
        raise EvaluationError(f"{folder} holds no file; name a folder of films (DICOM, PNG, JPEG)")
    return requests


def requests_of_table(root: Path, mapping: Path, images: Path | None) -> list[Request]:
    """The studies of a table as `custom` reads it (a report column is not needed), with their priors where dates and
    earlier reports say which.

    Raises:
        SourceError: the mapping or the table is not what it should be.
    """
    found = custom.read(root, Options("custom", mapping=mapping, images=images), reports=False)
    rows = _with_earlier_reports(found.studies)
    context = found.texts.get(rows["text"].to_numpy(), ("indication", "comparison"))
    earlier = found.texts.get(rows["prior_text"].to_numpy(), ("findings", "impression"))
    requests = []
    for study_id, image, prior_image, (indication, comparison), sections in zip(
        rows["study_id"], rows["image_source"], none(rows["prior_image"]), context, earlier, strict=True
    ):
        prior = (_below(found.images, prior_image), report_text(*sections)) if prior_image else None
        requests.append(Request(study_id, _below(found.images, image), indication, comparison, prior))
    refused = found.rejects[["study_id", "reason"]].itertuples(index=False)
    return requests + [Request(str(study), refused=str(reason)) for study, reason in refused]


def _with_earlier_reports(studies: pd.DataFrame) -> pd.DataFrame:
    """`studies` with prior_image and prior_text (0: none): of the same patient's last strictly earlier study that has a report.

    As `priors.link_priors` links, but that studies without a report are linked too.
    """
    studies = studies.assign(time=pd.to_datetime(studies["study_datetime"]).astype("datetime64[us]"))
    reported = (studies["findings_words"] > 0) | (studies["impression_words"] > 0)
    earlier = studies[reported & studies["time"].notna()].sort_values(["time", "study_id"])
    earlier = earlier[["time", "patient_id", "image_source", "text"]]
    earlier = earlier.rename(columns={"image_source": "prior_image", "text": "prior_text"})
    dated = studies[studies["time"].notna()].sort_values("time", kind="stable")
    linked = pd.merge_asof(dated, earlier, on="time", by="patient_id", allow_exact_matches=False)
    rows = pd.concat([linked, studies[studies["time"].isna()]], ignore_index=True)
    if "prior_text" not in rows:
        rows = rows.assign(prior_image=None, prior_text=0)
    return rows.assign(prior_text=rows["prior_text"].fillna(0).astype("int64"))


def _below(root: Path, name: str) -> Path:
    """The path of an image, which must not leave its folder.

    Raises:
        EvaluationError: it does.
    """
    if (clean := inside(name)) is None:
        raise EvaluationError(f"image path {name!r} leaves {root}")
    return root / clean


def _made_by(writer: ReportWriter) -> dict[str, Any]:
    settings = dict(writer.made_by)
    return {name: settings.pop(name) for name in ("model", "model_sha256", "films")} | {"settings": settings}


def _value(line: Mapping[str, Any], key: str) -> Any:
    made_by = line.get("made_by") or {}
    return made_by.get(key, (made_by.get("settings") or {}).get(key))
