"""CheXpert Plus: `df_chexpert_plus_240401.csv` and PNG images.

    python -m data_prep chexpert_plus --source CheXpertPlus --out data/chexpert_plus --rexrank ReXRank_CheXpertPlus.json

The table says `train/patient1/study1/view1_frontal.jpg`; the disk has `PNG/train/…/view1_frontal.png`, often `PNG/PNG/…`. A
study is a patient's study folder; its key image is the first frontal one (ReXrank's rule), and its report that image's:
reports of one study differ in their anonymised dates. The official validation split (200 studies) is ReXrank's test set, so
it is `test` here, with --rexrank as ReXrank's file has it. All of the training split is trained on, as in the paper, which
validates on MIMIC-CXR; a model of this set alone wants `--validation-studies 1024` (whole patients).

The order of a patient's studies (patient_report_date_order) is disputed, so priors are linked only with --priors.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from data_prep.demographics import age_of, races, sexes
from data_prep.priors import none
from data_prep.rejects import NO_FRONTAL, VIEW_UNKNOWN, reject_frame
from data_prep.sections import with_raw
from data_prep.source import FOUND_COLUMNS, Found, Options, blank_to_none, find_one, inside
from data_prep.tables import SourceError, iterate_csv
from data_prep.texts import Texts

DATASET = "chexpert_plus"
TITLE = "CheXpert Plus (Stanford; Chambon et al. 2024)"
LICENCE = "Stanford University Dataset Research Use Agreement: no redistribution, no sending to third parties."
TABLE = ("df_chexpert_plus_*.csv", "*/df_chexpert_plus_*.csv")
SPLIT_NAMES = {"train": "train", "valid": "test"}
COLUMNS = (
    "path_to_image",
    "frontal_lateral",
    "ap_pa",
    "deid_patient_id",
    "patient_report_date_order",
    "section_clinical_history",
    "section_history",
    "section_comparison",
    "section_findings",
    "section_impression",
    "age",
    "sex",
    "race",
    "split",
)
PATIENT_AND_STUDY = r"(patient[^/]+)/(study[^/]+)/[^/]+$"  # of path_to_image
IMAGE_FOLDERS = ("PNG/PNG/", "PNG/", "")
ORDER_NOTE = (
    "Priors follow patient_report_date_order, which is disputed: one audit finds about 48% of adjacent pairs inverted."
)


def inputs(root: Path, options: Options) -> list[Path]:
    """The table."""
    return [find_one(root, TABLE, "the CheXpert Plus table")]


def read(root: Path, options: Options) -> Found:
    """All studies of the table.

    Raises:
        SourceError: the table is missing or has other columns or splits.
    """
    path = find_one(root, TABLE, "the CheXpert Plus table")
    texts = Texts()
    images = pd.concat([_with_texts(rows, texts, options) for rows in iterate_csv(path, COLUMNS)], ignore_index=True)
    if unknown := sorted(set(images["split"].dropna()) - set(SPLIT_NAMES)):
        raise SourceError(f"{path}: split {unknown[0]!r}; expected {', '.join(SPLIT_NAMES)}")
    parts = images["path_to_image"].str.extract(PATIENT_AND_STUDY)
    if parts.isna().any(axis=None):
        row = parts.isna().any(axis=1).idxmax()
        raise SourceError(f"{path}: path_to_image {images['path_to_image'][row]!r} is not …/patientN/studyN/view….jpg")
    images["patient_id"] = parts[0]
    images["study_id"] = parts[0] + "_" + parts[1]
    images["split"] = images["split"].map(SPLIT_NAMES).astype(object)
    images["dataset"] = DATASET
    images = images.sort_values(["study_id", "path_to_image"], kind="stable")

    frontal = images["frontal_lateral"].str.strip().str.lower() == "frontal"
    studies = images[frontal].drop_duplicates("study_id", keep="first").reset_index(drop=True)
    others = images[~images["study_id"].isin(studies["study_id"])]
    lateral = others["frontal_lateral"].notna().groupby(others["study_id"]).transform("all")
    others = others.assign(lateral=lateral).drop_duplicates("study_id")
    rejects = [
        reject_frame(others[others["lateral"].astype(bool)], NO_FRONTAL),
        reject_frame(others[~others["lateral"].astype(bool)], VIEW_UNKNOWN),
    ]
    if options.sample:
        studies = studies.iloc[:: max(1, len(studies) // options.sample)].reset_index(drop=True)

    view = studies["ap_pa"].str.strip().str.upper()
    studies["view"] = view.where(view.isin(["AP", "PA"]), "frontal").astype(object)
    images_root = options.images or root
    studies["image_source"] = image_paths(studies["path_to_image"], images_root)
    studies["sex"] = sexes(studies["sex"])
    studies["age"] = pd.Series([age_of(text) for text in none(studies["age"])], dtype="float64")
    studies["race"] = races(studies["race"])
    studies["study_datetime"] = None
    studies["order"] = pd.to_numeric(studies["patient_report_date_order"], errors="coerce")
    linked = bool(options.priors)
    return Found(
        studies[list(FOUND_COLUMNS)],
        texts,
        images_root,
        TITLE,
        LICENCE,
        credentialed=True,
        rejects=pd.concat(rejects, ignore_index=True),
        notes=[
            "The official validation split is ReXrank's test set and is `test` here.",
            ORDER_NOTE
            if linked
            else f"No priors are linked and every encounter is 1. {ORDER_NOTE} --priors links them.",
        ],
        priors=False,
        dated=studies.set_index("study_id")[["study_datetime", "order"]],
        test_image=lambda path: image_paths(pd.Series([path]), images_root).iloc[0],
    )


def _with_texts(rows: pd.DataFrame, texts: Texts, options: Options) -> pd.DataFrame:
    """`rows` of the table with the sections moved to `texts`, those of the options' part."""
    columns = [name for name in rows if name.startswith("section_")]
    sections = pd.DataFrame(
        {name: [text if blank_to_none(text) else None for text in none(rows[name])] for name in columns}, dtype=object
    )
    history = sections["section_clinical_history"]
    sections["section_indication"] = history.where(history.notna(), sections["section_history"])
    named = sections.rename(columns=lambda name: name.removeprefix("section_"))
    reports = named.to_dict("records")
    if options.part is not None:
        patients = rows["path_to_image"].str.extract(PATIENT_AND_STUDY)[0]
        reports = [report if options.mine(patient) else None for report, patient in zip(reports, patients, strict=True)]
    return rows.drop(columns=columns).join(texts.add(report and with_raw(report) for report in reports))


def image_paths(paths: pd.Series, root: Path) -> pd.Series:
    """The table's paths as they lie below `root`: PNG for the table's JPG, in whichever of IMAGE_FOLDERS a sample exists.

    A path that leaves the folder is kept as it is, to be rejected for it.
    """
    clean = paths.map({path: inside(path) or path for path in paths})
    png = clean.str.replace(r"\.jpe?g$", ".png", regex=True)
    some = list(range(0, len(paths), max(1, len(paths) // 50)))
    for candidate in (png, clean):
        for folder in IMAGE_FOLDERS:
            if any((root / (folder + candidate.iloc[row])).is_file() for row in some):
                return folder + candidate
    return png
