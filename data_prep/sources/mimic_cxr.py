"""MIMIC-CXR: MIMIC-CXR-JPG 2.x images and tables, MIMIC-CXR reports, optionally MIMIC-IV demographics.

    python -m data_prep mimic --source MIMIC-CXR-JPG --out data/mimic --reports mimic-cxr-reports.zip \\
        --mimic-iv MIMIC-IV/hosp --rexrank ReXRank_MIMICCXR_test.json

--source holds `mimic-cxr-2.0.0-metadata.csv.gz`, `mimic-cxr-2.0.0-split.csv.gz` and `files/p10/p10000032/s50414267/*.jpg`;
--reports (default: --source) is a folder with `files/p10/p10000032/s50414267.txt`, or `mimic-cxr-reports.zip`. Both `.csv`
and `.csv.gz` do. Sex, age and race need MIMIC-IV's `patients.csv.gz` and `admissions.csv.gz`.

Training is the official training split; 1,024 of its studies, whole patients, are set aside for validation (Methods); the
official validation split is then not used (`--validation-studies 0` validates on it instead). The key image is the last
AP or PA image by name (ReXrank's rule). With --rexrank, `test` is the 2,347 studies that ReXrank's file lists, with its key
images and texts, and priors from here; the rest of the official test split is `test_rest`.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from data_prep.demographics import races, sexes
from data_prep.parts import Counted, Note
from data_prep.rejects import (
    NO_FRONTAL,
    NOT_IN_SPLIT,
    REPORT_MISSING,
    REPORT_UNREADABLE,
    SPLIT_UNUSED,
    VIEW_UNKNOWN,
    reject_frame,
)
from data_prep.sections import parse_report
from data_prep.source import ARCHIVE_ERRORS, FOUND_COLUMNS, Found, Options, find_one, find_optional, hidden
from data_prep.tables import SourceError, one_line, read_csv
from data_prep.texts import Texts

DATASET = "mimic"
TITLE = "MIMIC-CXR (MIMIC-CXR-JPG images, MIMIC-CXR reports; Johnson et al. 2019)"
LICENCE = "PhysioNet Credentialed Health Data License: no redistribution, no sending to third-party services."
VALIDATION_STUDIES = 1024  # Methods, dataset curation
METADATA = ("mimic-cxr-2*-metadata.csv.gz", "mimic-cxr-2*-metadata.csv")
SPLIT = ("mimic-cxr-2*-split.csv.gz", "mimic-cxr-2*-split.csv")
SPLIT_NAMES = {"train": "train", "validate": "validation", "test": "test"}
PROCEDURE_COLUMNS = (
    "ViewCodeSequence_CodeMeaning",
    "PerformedProcedureStepDescription",
    "ProcedureCodeSequence_CodeMeaning",
)
# About 15,800 images have no ViewPosition; then the first of these that the other columns match. A procedure of several
# views (PA AND LAT) does not say which image is which.
VIEW_PATTERNS = (
    (r"^(LEFT |RIGHT )?LATERAL$", "lateral"),
    (r"^POSTERO-ANTERIOR$", "PA"),
    (r"^ANTERO-POSTERIOR$", "AP"),
    (r"LAT|OBLIQUE|DECUB|2 VIEW|TWO VIEW", None),
    (r"\bPORT(ABLE|\.|\b)|\bAP\b", "AP"),
    (r"\bPA\b", "PA"),
)


def inputs(root: Path, options: Options) -> list[Path]:
    """The two tables, the reports where they are an archive, and MIMIC-IV's tables where given. Reports in a
    folder (227,835 files) are not fingerprinted: after changing one, prepare with --force."""
    hint = "is this the MIMIC-CXR-JPG folder?"
    paths = [
        find_one(root, METADATA, "MIMIC-CXR-JPG's metadata table", hint),
        find_one(root, SPLIT, "MIMIC-CXR-JPG's split table", hint),
    ]
    reports = _reports_path(root, options)
    return paths + ([reports] if reports.is_file() else []) + _mimic_iv_paths(options)


def read(root: Path, options: Options) -> Found:
    """All studies of the metadata table.

    Raises:
        SourceError: a table is missing or has other columns, or no report is found.
    """
    images = read_csv(
        find_one(root, METADATA, "MIMIC-CXR-JPG's metadata table"),
        ("dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime"),
        PROCEDURE_COLUMNS,
    )
    split = read_csv(
        find_one(root, SPLIT, "MIMIC-CXR-JPG's split table"), ("dicom_id", "study_id", "subject_id", "split")
    )
    if unknown := sorted(set(split["split"].dropna()) - set(SPLIT_NAMES)):
        raise SourceError(f"the split table has split {unknown[0]!r}; expected {', '.join(SPLIT_NAMES)}")
    if (without := images[["dicom_id", "subject_id", "study_id"]].isna().any(axis=1)).any():
        raise SourceError(
            f"the metadata table has {int(without.sum())} row(s) without dicom_id, subject_id or study_id"
        )
    images["view"] = views(images)
    images["datetime"] = datetimes(images["StudyDate"], images["StudyTime"])
    images = images.sort_values(["subject_id", "study_id", "dicom_id"], kind="stable")

    patients = images.drop_duplicates(["study_id", "subject_id"])["study_id"]
    if (twice := patients[patients.duplicated()]).size:
        raise SourceError(f"the metadata table has study {twice.iloc[0]} under two patients ({twice.nunique()} such)")
    studies = images.groupby("study_id", sort=True).agg(
        patient_id=("subject_id", "first"),
        study_datetime=("datetime", "min"),
        images=("view", "size"),
        known=("view", "count"),
    )
    studies["split"] = split.drop_duplicates("study_id").set_index("study_id")["split"].map(SPLIT_NAMES)
    frontal = images[images["view"].isin(["AP", "PA"])].drop_duplicates("study_id", keep="last").set_index("study_id")
    studies["view"] = frontal["view"]
    studies["dicom_id"] = frontal["dicom_id"]
    studies = studies.reset_index().astype({"split": object, "view": object, "study_id": object, "patient_id": object})
    studies["dataset"] = DATASET

    dated = studies.set_index("study_id")[["study_datetime"]].assign(order=None)
    rejects = []

    def reject(which: pd.Series, reason: str, detail: object = None) -> None:
        nonlocal studies
        rejects.append(reject_frame(studies[which], reason, detail))
        studies = studies[~which].reset_index(drop=True)

    reject(studies["split"].isna(), NOT_IN_SPLIT)
    validation = VALIDATION_STUDIES if options.validation_studies is None else options.validation_studies
    if validation:
        reject(
            studies["split"] == "validation",
            SPLIT_UNUSED,
            "MIMIC-CXR's own validation split; --validation-studies 0 validates on it",
        )
    no_frontal = studies["view"].isna()
    reject(no_frontal & (studies["known"] == studies["images"]), NO_FRONTAL)
    reject(studies["view"].isna(), VIEW_UNKNOWN, "no ViewPosition, and the procedure does not say")
    if options.sample:
        studies = studies.iloc[:: max(1, len(studies) // options.sample)].reset_index(drop=True)

    folder = "p" + studies["patient_id"].str[:2] + "/p" + studies["patient_id"] + "/s" + studies["study_id"]
    below = "files/" if (root / "files").is_dir() and options.images is None else ""
    images_root = options.images or root
    if options.images is not None and (options.images / "files").is_dir():
        below = "files/"
    studies["image_source"] = below + folder + "/" + studies["dicom_id"] + ".jpg"

    texts = Texts()
    mine = [options.mine(patient) for patient in studies["patient_id"]]
    reports, failures = read_reports(_reports_path(root, options), folder + ".txt", studies["study_id"], texts, mine)
    studies = studies.join(reports)
    index = None if options.part is None else studies[["patient_id", "split", "image_source"]]
    failed = studies["study_id"].map(failures)
    reject(failed.notna() & (failed == REPORT_MISSING), REPORT_MISSING)
    failed = studies["study_id"].map(failures)
    reject(failed.notna(), REPORT_UNREADABLE, failed.dropna().tolist())

    studies = options.own(studies)
    undated = int(studies["study_datetime"].isna().sum())
    notes: list[Note] = [Counted("{0:,} studies have no readable date and time: no prior, encounter 1.", (undated,))]
    if options.mimic_iv:
        studies = add_demographics(studies, options)
        notes.append(
            "Sex, age and race from MIMIC-IV: age = anchor_age + year of the study − anchor_year; race is the most frequent of the patient's admissions."
        )
    else:
        notes.append("No sex, age or race: they need MIMIC-IV (--mimic-iv).")
        studies[["sex", "age", "race"]] = None
    studies["order"] = None
    return Found(
        studies[list(FOUND_COLUMNS)],
        texts,
        images_root,
        TITLE,
        LICENCE,
        credentialed=True,
        rejects=pd.concat(rejects, ignore_index=True),
        notes=notes,
        validation_studies=VALIDATION_STUDIES,
        dated=dated,
        # ReXrank's paths begin at `files`: /p10/p10000032/…
        index=index,
        test_image=lambda path: below + path.lstrip("/"),
    )


def views(images: pd.DataFrame) -> pd.Series:
    """AP, PA, lateral (which stands for every other known view) or null, for each row of the metadata."""
    position = images["ViewPosition"].str.strip().str.upper()
    view = position.where(position.isin(["AP", "PA"]), position.where(position.isna(), "lateral")).astype(object)
    for column in PROCEDURE_COLUMNS:
        if column in images:
            known = {text: _view_of(text) for text in images.loc[view.isna(), column].dropna().unique()}
            view = view.where(view.notna(), images[column].map(known).astype(object))
    return view


def _view_of(procedure: str) -> str | None:
    for pattern, view in VIEW_PATTERNS:
        if re.search(pattern, procedure.strip().upper()):
            return view
    return None


def datetimes(dates: pd.Series, times: pd.Series) -> pd.Series:
    """StudyDate (YYYYMMDD) and StudyTime (HHMMSS.fff that has lost its leading zeros: 80556.875 is 08:05:56) together.

    A value that is neither is an unknown time; the caller counts them.

    Raises:
        SourceError: more than one in a hundred is neither: the columns are not what they should be.
    """
    clock = times.fillna("0").str.split(".").str[0].str.zfill(6)
    together = pd.to_datetime(dates + clock, format="%Y%m%d%H%M%S", errors="coerce")
    if (bad := together.isna()).mean() > 0.01:
        row = bad.idxmax()
        raise SourceError(
            f"the metadata's StudyDate {dates[row]!r}, StudyTime {times[row]!r} are not a date and a time"
        )
    return together


def _reports_path(root: Path, options: Options) -> Path:
    """The folder that holds p10/…/s….txt, or the zip."""
    place = options.reports or root
    if place.is_file():
        return place
    if (archive := find_optional(place, ("mimic-cxr-reports.zip",))) is not None:
        return archive
    for name in ("", "files", "reports", "reports/files", "mimic-cxr-reports", "mimic-cxr-reports/files"):
        folder = place / name
        if next(folder.glob("p1[0-9]/p*/s*.txt"), None):
            return folder
    raise SourceError(
        f"{place}: no reports found (expected files/p10/p…/s….txt or mimic-cxr-reports.zip); they come with MIMIC-CXR, not "
        "with MIMIC-CXR-JPG: give --reports"
    )


def read_reports(
    place: Path, names: pd.Series, study_ids: pd.Series, texts: Texts, mine: Sequence[bool]
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Where each report's sections lie in `texts`, and the studies whose report failed: study → REPORT_MISSING or why it
    is unreadable. Only those that are `mine` are read."""
    failures: dict[str, str] = {}
    archive, members = None, {}
    if place.is_file():
        try:
            archive = zipfile.ZipFile(place)
        except (OSError, zipfile.BadZipFile) as error:
            raise SourceError(f"{place}: not a readable zip archive ({one_line(error)}); fetch it again") from error
        members = {
            name.rsplit("/", 1)[-1]: name for name in archive.namelist() if name.endswith(".txt") and not hidden(name)
        }

    def parsed(name: str, study_id: str) -> dict[str, str | None]:
        try:
            if archive is None:
                content = (place / name).read_bytes()
            else:
                content = archive.read(members[name.rsplit("/", 1)[-1]])
            return parse_report(content.decode("utf-8"), study_id)
        except (FileNotFoundError, KeyError):
            failures[study_id] = REPORT_MISSING
        except ARCHIVE_ERRORS as error:  # one member is damaged, encrypted, or not UTF-8
            failures[study_id] = one_line(error)
        return {}

    progress = tqdm(names, desc="mimic reports", unit="report", smoothing=0.05)
    reports = texts.add(
        parsed(name, study_id) if own else None for name, study_id, own in zip(progress, study_ids, mine, strict=True)
    )
    if archive is not None:
        archive.close()
    # A part of a few studies may have no report that is there.
    elsewhere = not all(mine) and any(
        name.rsplit("/", 1)[-1] in members if members else (place / name).is_file() for name in names
    )
    if failures and len(failures) == sum(mine) and not elsewhere:
        raise SourceError(
            f"{place}: none of {len(reports):,} reports is there (for one, {names.iloc[0]}); give --reports"
        )
    return reports, failures


def _mimic_iv_paths(options: Options) -> list[Path]:
    if options.mimic_iv is None:
        return []
    return [
        find_one(
            options.mimic_iv,
            (f"{name}.csv.gz", f"{name}.csv", f"hosp/{name}.csv.gz", f"hosp/{name}.csv"),
            f"MIMIC-IV's {name} table",
        )
        for name in ("patients", "admissions")
    ]


def add_demographics(studies: pd.DataFrame, options: Options) -> pd.DataFrame:
    """`studies` with sex, age (years) and race; null for patients whom MIMIC-IV does not have."""
    patients_path, admissions_path = _mimic_iv_paths(options)
    patients = read_csv(patients_path, ("subject_id", "gender", "anchor_age", "anchor_year")).set_index("subject_id")
    admissions = read_csv(admissions_path, ("subject_id", "race"))
    admissions["race"] = races(admissions["race"])
    # One race a patient: the most frequent over the admissions, the first in the alphabet among equals.
    counted = admissions.dropna().groupby(["subject_id", "race"]).size().reset_index(name="count")
    counted = counted.sort_values(["count", "race"], ascending=[False, True], kind="stable").drop_duplicates(
        "subject_id"
    )
    subject = studies["patient_id"]
    year = studies["study_datetime"].dt.year
    age = (
        subject.map(pd.to_numeric(patients["anchor_age"])) + year - subject.map(pd.to_numeric(patients["anchor_year"]))
    )
    studies["sex"] = sexes(subject.map(patients["gender"]))
    studies["age"] = age.where(age >= 0)
    studies["race"] = subject.map(counted.set_index("subject_id")["race"]).astype(object)
    return studies
