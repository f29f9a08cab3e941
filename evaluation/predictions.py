"""ReXrank's prediction file: what is read, what is written, and how predictions meet their references.

The form (ReXrank's `ReXRank_*.json`): a dict keyed by study, each entry with report, section_findings,
section_impression, context, image_path, key_image_path and, in an answer, model_prediction.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.headings import JOINT, Piece, findings_of, iterate_sections
from data_prep.sections import RAW, single_spaced
from data_prep.sources.rexrank import MISSING, patient_of, printed_report
from data_prep.study import STUDY_SCHEMA, read_studies, report_text
from foundation.errors import EvaluationError, read_record
from foundation.governance import claimed_source
from settings.evaluations import REFERENCE_FORMS

# Which sections are compared. `findings_impression` and `findings` are ReXrank's boards: both sections, a missing one printed
# as the word None, and findings with findings. `available`: those the reference has, the form models are trained on; what a
# candidate writes beside them does not count.
BOARD = "findings_impression"  # what other people's models are asked for, and the default where models are compared
_ABSENT = {"", "none", "none.", "nan"}


@dataclass(frozen=True)
class ReferenceForm:
    """How references are written. The defaults are those of ReXrank's evaluation script, whose BLEU splits at spaces only.

    Args:
        text: `raw`, the sections as the source has them, with line breaks; `single_spaced`, every run of white space one
            space, as models are trained.
        missing_section: what stands for a missing section where both are compared: `None` (ReXrank's script) or `None.`
            (the `report` field of ReXrank's files). Which made the board's numbers is not known.
    """

    text: str = "raw"
    missing_section: str = MISSING

    def __post_init__(self) -> None:
        for name, choices in REFERENCE_FORMS.items():
            if getattr(self, name) not in choices:
                raise EvaluationError(
                    f"{'reference_form' if name == 'text' else name} is {getattr(self, name)!r}; choose {' or '.join(choices)}"
                )


@dataclass
class Problems:
    """What was unusual about a prediction file; ids are listed, nothing is dropped silently."""

    missing: list[str] = field(default_factory=list)  # a reference without a prediction: scored as an empty report
    extra: list[str] = field(default_factory=list)  # a prediction without a reference: not scored
    duplicate: list[str] = field(default_factory=list)  # a key that the file holds twice: the last one counts
    null: list[str] = field(default_factory=list)  # null or NaN: scored as an empty report
    empty: list[str] = field(default_factory=list)  # "" or white space: scored as it is
    no_findings: list[str] = field(
        default_factory=list
    )  # findings are compared, it has none: scored as an empty report
    not_text: list[str] = field(default_factory=list)  # a number, a list …: scored as an empty report
    no_reference: list[str] = field(
        default_factory=list
    )  # the reference lacks the section that is compared: not scored
    failed: list[str] = field(default_factory=list)  # a server gave no report (rival.py): not scored

    def counts(self) -> dict[str, int]:
        return {name: len(ids) for name, ids in vars(self).items()}


@dataclass
class PredictionFile:
    """A read file: entries by study in file order, and keys that appeared more than once."""

    path: Path
    entries: dict[str, dict[str, Any]]
    duplicates: list[str]
    fingerprint: str  # sha256 of the file


def read_predictions(path: Path | str) -> PredictionFile:
    """Read a file in ReXrank's form; bare NaN tokens are read as missing values.

    Raises:
        EvaluationError: no file, not JSON, or not a dict of dicts.
    """
    path = Path(path)
    duplicates: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        read: dict[str, Any] = {}
        for key, value in items:
            if key in read:
                duplicates.append(key)
            read[key] = value
        return read

    try:
        content = path.read_bytes()
        entries = json.loads(content.decode("utf-8-sig"), object_pairs_hook=pairs)
    except FileNotFoundError:
        raise EvaluationError(f"no prediction file {path}; make one with: python -m evaluation generate …") from None
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        raise EvaluationError(f"{path} is not JSON: {error}") from error
    if not isinstance(entries, dict) or not entries:
        raise EvaluationError(
            f"{path} must hold a JSON object keyed by study, as ReXrank's files do, with at least one"
        )
    if wrong := [key for key, entry in entries.items() if not isinstance(entry, dict)]:
        raise EvaluationError(
            f"{path}: the entry of study {wrong[0]} is not an object with report, model_prediction, …"
        )
    studies = set(entries)
    return PredictionFile(
        path, entries, sorted({key for key in duplicates if key in studies}), hashlib.sha256(content).hexdigest()
    )


def failed_studies(predictions: Path) -> set[str]:
    """The studies that a server gave no report for, by the file beside its predictions; they are not to be scored."""
    path = predictions.parent / "generation.json"
    failed = (read_record(path).get("failed") or {}) if path.is_file() else {}
    return {study_id for ids in failed.values() for study_id in ids}


def section(value: Any) -> str | None:
    """A section's text, or None where it is missing in any of the ways that ReXrank's files show it (null, NaN, None)."""
    if not isinstance(value, str) or value.strip().lower() in _ABSENT:
        return None
    return value


def reference_text(
    study: Mapping[str, Any],
    sections: str,
    form: ReferenceForm = ReferenceForm(),
) -> str | None:
    """The text that a candidate is compared with, or None where this study cannot be compared (no such section).

    A study without raw sections (one of a file, which has no others) gives its sections as they are.
    """
    texts = {name: study.get(raw) or study.get(name) for name, raw in RAW.items()}
    if form.text == "single_spaced":
        texts = {name: single_spaced(text) for name, text in texts.items()}
    findings, impression = section(texts["findings"]), section(texts["impression"])
    if sections == "findings":
        return findings
    if sections == "findings_impression":
        if not (findings or impression):
            return None
        return printed_report(texts["findings"], texts["impression"], form.missing_section)
    return report_text(findings, impression) or None


def candidate_text(prediction: str, sections: str, asked: Sequence[str] = ("findings", "impression")) -> str:
    """The part of a prediction that is compared, in one form whoever wrote it.

    Headings are read as `data_prep.headings` says, and lose their marks (`**Findings:**`, `### Impression`). Text without
    headings is taken whole. Where findings are compared, or `available` sections, only these are taken: what has none of
    them is empty.

    Args:
        asked: the sections that the reference has, which a model of ours is asked for under `available`.
    """
    if sections == "findings":
        return findings_of(prediction)
    pieces = list(iterate_sections(prediction))
    written = {piece.section for piece in pieces}
    if not written & {*RAW, JOINT}:
        return prediction
    ends = [*(piece.begin for piece in pieces[1:]), len(prediction)]
    texts = [prediction[piece.begin : end] for piece, end in zip(pieces, ends, strict=True)]
    headings = [text.removesuffix(piece.body).strip() for text, piece in zip(texts, pieces, strict=True)]
    known = [f"{name.capitalize()}:" for name in asked]
    if all(heading in known for heading, text in zip(headings, texts, strict=True) if text.strip()):
        return prediction  # nothing to cut, and in the references' form
    if sections == "available":
        if JOINT in written:
            return f"{asked[0].capitalize()}: {findings_of(prediction)}"
        impressions = [piece.body.strip() for piece in pieces if piece.section == "impression"]
        found = {"findings": findings_of(prediction), "impression": "\n".join(impressions)}
        return report_text(*(found[name] if name in asked else None for name in RAW))
    return "".join(_without_marks(text, piece) for text, piece in zip(texts, pieces, strict=True)).strip()


def _without_marks(text: str, piece: Piece) -> str:
    """A section with its heading as the references have it where Markdown's marks stand around that; else as it is."""
    heading = text.removesuffix(piece.body)
    if piece.section not in RAW or not re.search(r"[#*_]", heading):
        return text
    space = re.match(r"\s*", text)[0]
    return f"{space}{piece.section.capitalize()}: {piece.body.lstrip()}"


def studies_of_file(file: PredictionFile) -> list[dict[str, Any]]:
    """The studies that a ReXrank file describes, with the study table's keys; what the file lacks is None."""
    studies = []
    for key, entry in file.entries.items():
        study: dict[str, Any] = dict.fromkeys(STUDY_SCHEMA.names)
        text = entry.get("context") if isinstance(entry.get("context"), str) else ""
        study |= {
            "study_id": key,
            "patient_id": _patient(key, entry),
            "dataset": str(entry.get("dataset") or "file"),
            "source": claimed_source(str(entry["dataset"]) if entry.get("dataset") else None),
            "split": str(entry.get("split") or "test"),
            **{name: section(entry.get(f"section_{name}")) for name in RAW},
            **{raw: entry.get(f"section_{name}") for name, raw in RAW.items()},
            "indication": section(_context_part(text, "Indication")),
            "comparison": section(_context_part(text, "Comparison")),
            "image": entry.get("key_image_path") if isinstance(entry.get("key_image_path"), str) else None,
            "sex": _sex(entry.get("sex") or _context_part(text, "Gender")),
            "age": _age(entry.get("age") or _context_part(text, "Age")),
            "race": section(entry.get("race")),
        }
        studies.append(study)
    return studies


def studies_of_data(folder: Path | str, split: str) -> list[dict[str, Any]]:
    """The studies of one split of a prepared folder, with `folder` added (image paths are inside it)."""
    return [{**row, "folder": str(folder)} for row in read_studies(folder, split).to_pylist()]


def rexrank_entry(study: Mapping[str, Any], prediction: str | None = None) -> dict[str, Any]:
    """One study as an entry of a ReXrank file; without `prediction`, as one of a test file."""
    findings, impression = (section(study.get(raw) or study.get(name)) for name, raw in RAW.items())
    context = "".join(
        f"{name.capitalize()}: {study[name]} " for name in ("indication", "comparison") if study.get(name)
    ).strip()
    entry = {
        "report": f"Findings: {findings or 'None.'} Impression: {impression or 'None.'}",
        "section_findings": findings,
        "section_impression": impression,
        "context": context,
        "image_path": [study["image"]],
        "key_image_path": study["image"],
        "dataset": study["dataset"],
        "split": study["split"],
        "patient_id": study["patient_id"],
    }
    return entry if prediction is None else {**entry, "model_prediction": prediction}


def inside(root: Path, name: str) -> Path:
    """The path of `name` inside `root`, resolved; ReXrank's MIMIC paths begin with a slash, which is dropped.

    Raises:
        EvaluationError: it leaves `root`.
    """
    path = (root / name.lstrip("/")).resolve()
    if not path.is_relative_to(root.resolve()):
        raise EvaluationError(f"image path {name!r} leaves {root}")
    return path


def pair(
    studies: Sequence[Mapping[str, Any]],
    file: PredictionFile,
    sections: str,
    form: ReferenceForm = ReferenceForm(),
) -> tuple[list[dict[str, Any]], Problems]:
    """Studies with their candidate, by study id and never by position, and what was unusual.

    Each returned row is the study with `reference`, `candidate` and `status` (ok, missing, null, empty,
    no_findings, not_text).
    """
    problems = Problems(duplicate=list(file.duplicates))
    known = {study["study_id"] for study in studies}
    if len(known) != len(studies):
        raise EvaluationError("the references hold a study id twice; score each data set on its own")
    if form.text == "raw" and any(s.get(n) and s.get(raw, s) is None for s in studies for n, raw in RAW.items()):
        raise EvaluationError(
            "the prepared data hold no raw sections (an earlier version made them), which ReXrank's references are; prepare "
            "them again with FORCE=1, or score with --reference_form single_spaced"
        )
    problems.extra = [key for key in file.entries if key not in known]
    rows = []
    for study in studies:
        key = study["study_id"]
        reference = reference_text(study, sections, form)
        if reference is None:
            problems.no_reference.append(key)
            continue
        status, prediction = _prediction(file.entries.get(key))
        asked = [name for name in RAW if section(study.get(name))]
        candidate = candidate_text(prediction, sections, asked)
        if status == "ok" and not candidate.strip():
            status = "no_findings"
        if status != "ok":
            getattr(problems, status).append(key)
        rows.append({**study, "reference": reference, "candidate": candidate, "status": status})
    if not rows:
        raise EvaluationError(f"{file.path}: no study has a reference with sections={sections}; choose others")
    if len(problems.missing) == len(rows):
        raise EvaluationError(
            f"{file.path} has no prediction for any of the {len(rows)} studies: its keys ({_some(file.entries)}) are not "
            f"the references' ({_some(known)}), or it has no model_prediction"
        )
    return rows, problems


def _prediction(entry: Mapping[str, Any] | None) -> tuple[str, str]:
    if entry is None or "model_prediction" not in entry:
        return "missing", ""
    value = entry["model_prediction"]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "null", ""
    if not isinstance(value, str):
        return "not_text", ""
    return ("ok", value) if value.strip() else ("empty", "")


def _patient(key: str, entry: Mapping[str, Any]) -> str:
    """The patient of a study of a file: as the entry says, or as its key or image path does (MIMIC-CXR's
    `/p10/p10000032/s…`); else the study is its own patient."""
    if named := next(
        (entry[name] for name in ("patient_id", "subject_id", "PatientID") if _known(entry.get(name))), None
    ):
        return str(named)
    if (patient := patient_of(key, entry)) != key:
        return patient
    paths = [entry.get("key_image_path"), *(entry.get("image_path") or [])]
    found = (re.search(r"(?:^|/)p(\d{8})/", path) for path in paths if isinstance(path, str))
    return next((match[1] for match in found if match), key)


def _known(value: Any) -> bool:
    return value is not None and value == value and str(value).strip() != ""  # NaN is unlike itself


def _context_part(text: str, name: str) -> str | None:
    """What follows `name:` in a context up to the next of its headings."""
    match = re.search(rf"{name}:\s*(.*?)\s*(?=Age:|Gender:|Indication:|Comparison:|$)", text, re.DOTALL)
    return match.group(1) if match else None


def _sex(value: Any) -> str | None:
    letter = str(value or "").strip().upper()[:1]
    return letter if letter in ("F", "M") else None


def _age(value: Any) -> float | None:
    """Years: `72.0`, or the middle of a span `50-60`."""
    numbers = [float(n) for n in re.findall(r"\d+(?:\.\d+)?", str(value or ""))]
    return sum(numbers[:2]) / len(numbers[:2]) if numbers else None


def _some(keys: Iterable[str]) -> str:
    return ", ".join(sorted(keys)[:2]) + ", …"
