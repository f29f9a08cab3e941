"""ReXrank test (and validation) files: `ReXRank_*.json`.

    python -m data_prep rexrank --source ReXRank_MIMICCXR_test.json --images MIMIC-CXR-JPG/files --out data/rexrank_mimic

--images is ReXrank's image root (MIMIC-CXR: `files`; CheXpert Plus: `PNG`; IU X-ray: `images`). All studies go into the test
split (those of a validation file into validation), with ReXrank's own key image and texts: findings_raw and impression_raw are the file's sections to the byte. The table's
`dataset` is the data set that the file is of, so that its rules (who may see the text) hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from data_prep.demographics import age_of, race
from data_prep.rejects import NO_IMAGE, reject_frame
from data_prep.sections import RAW
from data_prep.source import Found, Options, blank_to_none, found_frame, read_json, require_keys
from data_prep.study import ids_fingerprint, references_fingerprint
from data_prep.tables import SourceError
from data_prep.texts import Texts

TITLE = "ReXrank ({})"
# Form of a study's key → (data set, its patient within the key).
KEYS = (
    (r"\d{8}", "mimic", None),
    (r"(patient\d+)_study\d+", "chexpert_plus", 1),
    (r"(CXR\d+)_.*", "iu_xray", 1),
    (r"(p[^_]+)_a[^_]*_s.*", "rexgradient", 1),
)
LICENCES = {
    "mimic": ("PhysioNet Credentialed Health Data License", True),
    "chexpert_plus": ("Stanford University Dataset Research Use Agreement", True),
    "iu_xray": ("CC BY-NC-ND 4.0", False),
    "rexgradient": ("ReXGradient data use agreement", True),
}
MISSING = "None"  # what ReXrank's script prints of a section that is not there (str of Python's None)
NEEDED = ("section_findings", "section_impression", "key_image_path")
VIEW_NAMES = {"antero-posterior": "AP", "postero-anterior": "PA", "ap": "AP", "pa": "PA"}
CONTEXT = re.compile(
    r"(?:Age:(?P<age>[\d.-]+?)\.(?=Gender:|Indication:|Comparison:|$))?"
    r"(?:Gender:(?P<sex>[^.]*)\.)?"
    r"\s*(?:Indication:(?P<indication>.*?))?\s*(?:Comparison:(?P<comparison>.*))?",
    re.DOTALL,
)


def inputs(root: Path, options: Options) -> list[Path]:
    """The file."""
    if root.is_dir():
        raise SourceError(f"{root}: --source of rexrank is one ReXRank_*.json file")
    return [root]


def read(root: Path, options: Options) -> Found:
    """All studies of the file.

    Raises:
        SourceError: no image root given, or not a ReXrank file.
    """
    studies = read_file(root)
    dataset = dataset_of(studies, root)
    keys = {key for study in studies.values() for key in study}
    require_keys(root, keys, NEEDED, "a ReXRank_*.json file")
    if options.images is None:
        raise SourceError("rexrank needs --images DIR, the root that the file's image paths are below")
    listed = [
        study_row(study_id, study, dataset, "validation" if is_validation(root, study) else "test")
        for study_id, study in studies.items()
    ]
    rows = [row for row in listed if row["image_source"]]
    licence, credentialed = LICENCES[dataset]
    texts = Texts()
    found = Found(
        found_frame(rows, dataset, texts),
        texts,
        options.images,
        TITLE.format(dataset),
        licence,
        credentialed,
        priors=False,
    )
    found.notes.append("Key images and texts as ReXrank's file gives them; no dates, so no priors.")
    found.notes += notes_on(listed)
    if len(rows) < len(listed):
        found.rejects = reject_frame(pd.DataFrame([row for row in listed if not row["image_source"]]), NO_IMAGE)
    if not any(row["split"] == "validation" for row in listed):
        found.test_file = recorded(dataset, sections_of(listed))
    return found


def study_row(study_id: str, study: Mapping[str, Any], dataset: str, split: str) -> dict[str, Any]:
    """An entry of a file as a study found; also `frontal` and `context_read`, whether the file says so and reads so.

    `image_source` is the key image's path as the file has it, None where it names none.
    """
    context = parse_context(study.get("context"))
    parts = context or dict.fromkeys(("age", "sex", "indication", "comparison"))
    image = study.get("key_image_path")
    view, frontal = key_view(study) if image else ("frontal", True)
    sex = (parts["sex"] or "")[:1].upper()
    return {
        "study_id": study_id,
        "patient_id": patient_of(study_id, study),
        "dataset": dataset,
        "split": split,
        "view": view,
        "image_source": str(image) if image else None,
        **{name: blank_to_none(study.get(f"section_{name}")) for name in RAW},
        **{raw: study.get(f"section_{name}") for name, raw in RAW.items()},
        "indication": parts["indication"],
        "comparison": parts["comparison"],
        "sex": sex if sex in ("F", "M") else None,
        "age": age_of(parts["age"]),
        "race": race(study.get("race")),
        "frontal": frontal,
        "context_read": context is not None,
    }


def sections_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, Any]]:
    """Study id → findings and impression as the file has them, of `study_row`s."""
    return {row["study_id"]: (row[RAW["findings"]], row[RAW["impression"]]) for row in rows}


def notes_on(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What of a file's entries a data card should say."""
    notes = []
    if other_view := sum(not row["frontal"] for row in rows):
        notes.append(
            f"{other_view:,} studies have no image marked AP, PA or frontal; ReXrank's key image is used as it is."
        )
    if unread := sum(not row["context_read"] for row in rows):
        notes.append(f"{unread:,} studies have a context of another form, which is left out.")
    return notes


def recorded(dataset: str, sections: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """A test file as a data card names it: which board's, how many studies, the fingerprints of their ids and of the
    references that ReXrank's script makes of it, for each of its boards.

    Args:
        sections: study id → findings and impression as the file has them.
    """
    boards = {
        "findings": {key: findings for key, (findings, _) in sections.items() if _is_printed(findings)},
        "findings_impression": {key: printed_report(*both) for key, both in sections.items()},
    }
    return {
        "dataset": dataset,
        "studies": len(sections),
        "study_ids_sha256": ids_fingerprint(sections),
        "references_sha256": {board: references_fingerprint(references) for board, references in boards.items()},
    }


def printed_report(findings: Any, impression: Any, missing: str = MISSING) -> str:
    """Both sections as ReXrank's script prints them: as they are, were it the word None itself; `missing` for one that is
    none or blank."""
    findings, impression = (text if _is_printed(text) else missing for text in (findings, impression))
    return f"Findings: {findings} Impression: {impression}"


def _is_printed(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip())


def read_file(path: Path) -> dict[str, dict[str, Any]]:
    """The studies of a ReXrank file, by key; bare NaN tokens as null.

    Raises:
        SourceError: unreadable, or an entry is not a study.
    """
    studies = read_json(path, dict)
    for study_id, study in studies.items():
        if not isinstance(study, dict) or "image_path" not in study:
            raise SourceError(f"{path}: entry {study_id!r} has no image_path; expected a ReXRank_*.json file")
    if not studies:
        raise SourceError(f"{path}: holds no study")
    return studies


def dataset_of(studies: Mapping[str, Any], path: Path) -> str:
    """Which data set the keys are of.

    Raises:
        SourceError: none that is known.
    """
    first = next(iter(studies))
    for pattern, dataset, _ in KEYS:
        if re.fullmatch(pattern, first):
            return dataset
    raise SourceError(f"{path}: study key {first!r} is of no data set that ReXrank has files for")


def patient_of(study_id: str, study: Mapping[str, Any]) -> str:
    """The patient, as the data set's own source names it."""
    if study.get("subject_id") is not None:
        return str(study["subject_id"])
    if study.get("PatientID") is not None:
        return str(study["PatientID"])
    for pattern, dataset, group in KEYS:
        if group and (match := re.fullmatch(pattern, study_id)):
            return match[group].removeprefix("p") if dataset == "rexgradient" else match[group]
    return study_id


def is_validation(path: Path, study: Mapping[str, Any]) -> bool:
    """Whether the study is of a validation file (IU X-ray has one)."""
    return study.get("split") in ("val", "valid", "validate") or path.stem.endswith("_valid")


def parse_context(context: str | None) -> dict[str, str | None] | None:
    """Age, sex, indication and comparison in `Age:…Gender:…Indication: …Comparison: …`, any of which may be absent; None
    where the text has another form."""
    if not (match := CONTEXT.fullmatch(context or "")):
        return None
    parts = {name: blank_to_none(text) for name, text in match.groupdict().items()}
    if parts["indication"] == "nan":
        parts["indication"] = None
    return parts


def key_view(study: Mapping[str, Any]) -> tuple[str, bool]:
    """The key image's view (AP, PA, else frontal), and whether the file marks it as frontal at all."""
    paths, key = list(study["image_path"]), study["key_image_path"]
    labels = []
    for name in ("ap_pa", "frontal_lateral"):
        values = study.get(name) or []
        if len(values) == len(paths) and key in paths:
            labels.append(str(values[paths.index(key)]).strip().lower())
    for label in labels:
        if label in VIEW_NAMES:
            return VIEW_NAMES[label], True
    # A view list of another length than the images says nothing; the key image is then taken at its word.
    return "frontal", not labels or "frontal" in labels


def read_test_files(paths: Sequence[Path], dataset: str) -> list[dict[str, Any]]:
    """The studies of ReXrank test files of `dataset`, as `study_row` gives them, each once.

    Raises:
        SourceError: a file of another data set, or of validation studies.
    """
    rows: dict[str, dict[str, Any]] = {}
    for path in paths:
        entries = read_file(path)
        if (other := dataset_of(entries, path)) != dataset:
            raise SourceError(f"{path}: a ReXrank file of {other}, not of {dataset}; leave it out of --rexrank")
        if any(is_validation(path, study) for study in entries.values()):
            raise SourceError(f"{path}: holds validation studies; --rexrank takes test files")
        keys = {key for study in entries.values() for key in study}
        require_keys(path, keys, NEEDED, "a ReXRank_*.json file")
        rows |= {study_id: study_row(study_id, study, dataset, "test") for study_id, study in entries.items()}
    return list(rows.values())
