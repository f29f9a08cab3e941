"""Phantom patients in each source's on-disk layout, with the quirks of the real thing: no licence, the whole path.

Every writer returns a `Material`: where it wrote, and what preparation must make of each study. Real patients' data is never
in here; the identifiers only have the real ones' form.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import zipfile
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.sources.phantom import PhantomDifficulty, PhantomStudy, studies

SIZE = 96  # pixels of a drawn phantom
MANY_ENCOUNTERS = PhantomDifficulty(encounters=(0.60, 0.18, 0.09, 0.06, 0.04, 0.03))  # so that there are priors


@dataclass
class Material:
    """What a writer made.

    Args:
        root: the source folder.
        kept: study → the columns that its row must have.
        images: study → its key image, as drawn.
        rejected: study → reason.
    """

    root: Path
    kept: dict[str, dict] = field(default_factory=dict)
    images: dict[str, Image.Image] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Path] = field(default_factory=dict)


@lru_cache(maxsize=8)
def phantoms(number: int, split: str = "train", seed: int = 3) -> tuple[PhantomStudy, ...]:
    """Phantom studies, patient after patient, each patient's in order of time."""
    return tuple(studies("harbor", seed, split, number, SIZE, MANY_ENCOUNTERS))


def frontal(study: PhantomStudy, width: int = 120, height: int = 96) -> Image.Image:
    """The study's image, wider than high as many are."""
    return study.image.convert("L").resize((width, height))


def other_view(study: PhantomStudy, width: int = 120, height: int = 96) -> Image.Image:
    """An image of the study that is not its key image, and cannot be taken for it."""
    return Image.fromarray(255 - np.asarray(frontal(study, width, height)))


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **({"quality": 95} if path.suffix in (".jpg", ".jpeg") else {}))


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def write_csv(path: Path, rows: list[dict], columns: list[str] | None = None) -> None:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, value: object) -> None:
    """JSON as public files have it: missing values are bare NaN tokens."""

    def with_nan(item):
        if isinstance(item, dict):
            return {key: with_nan(value) for key, value in item.items()}
        if isinstance(item, list):
            return [with_nan(value) for value in item]
        return float("nan") if item is None else item

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(with_nan(value)), encoding="utf-8")


def wrapped(text: str, width: int = 60) -> str:
    """Text broken into lines that begin with a space, as MIMIC-CXR's reports are."""
    lines, line = [], ""
    for word in text.split():
        if len(line) + len(word) > width:
            lines.append(line)
            line = ""
        line += " " + word
    return "\n".join([*lines, line])


# --- MIMIC-CXR -------------------------------------------------------------------------------------------------------


def mimic_report(record: dict) -> str:
    """A report in MIMIC-CXR's form."""
    text = "                                 FINAL REPORT\n EXAMINATION:  CHEST (PORTABLE AP)\n \n"
    for header, name in (
        ("INDICATION", "indication"),
        ("COMPARISON", "comparison"),
        ("FINDINGS", "findings"),
        ("IMPRESSION", "impression"),
    ):
        if record[name]:
            text += f" {header}: {wrapped(record[name])}\n \n"
    return text


def mimic(root: Path, number: int = 24, zipped: bool = False) -> Material:
    """MIMIC-CXR-JPG tables and images, MIMIC-CXR reports, MIMIC-IV demographics, a ReXrank test file.

    Of the training patients, the second has one study with each thing that can go wrong.
    """
    made = Material(root)
    rng = np.random.default_rng(0)
    metadata, split_rows, patients, admissions, rexrank = [], [], {}, [], {}
    texts: dict[str, str | None] = {}
    subjects: dict[str, str] = {}
    broken = iter(
        ("lateral_only", "no_view", "truncated", "missing_image", "no_report_file", "empty_report", "not_in_split")
    )

    everything = (
        [("train", s) for s in phantoms(number)]
        + [("test", s) for s in phantoms(6, "test")]
        + [("validate", s) for s in phantoms(3, "validation")]
    )
    for index, (split, study) in enumerate(everything):
        record = study.record
        subject = subjects.setdefault(record["patient_id"], str(10000032 + 100 * len(subjects)))
        study_id = str(50000000 + int(rng.integers(9_000_000)))  # random: never in order of time
        when = record["study_datetime"].replace(microsecond=0)
        folder = f"p{subject[:2]}/p{subject}/s{study_id}"
        what = "good"
        if split == "train" and index % 3 == 2:
            what = next(broken, "good")
        # A quarter of the good ones have no ViewPosition but a telling procedure.
        position, procedure = record["view"], "CHEST (PA AND LAT)"
        if what == "good" and index % 4 == 3:
            position, procedure = "", "CHEST (PORTABLE AP)"
        view = position or "AP"
        names = sorted(f"{rng.integers(1 << 32):08x}-{rng.integers(1 << 32):08x}" for _ in range(3))
        views = [position, "LATERAL", position] if index % 2 else ["LL", position]
        if what == "lateral_only":
            views = ["LATERAL", "LL"]
        elif what == "no_view":
            views, procedure = ["", ""], "CHEST (PA AND LAT)"
        key = max((n for n, v in enumerate(views) if v == position), default=0)
        for n, name in zip(range(len(views)), names, strict=False):
            path = root / "files" / folder / f"{name}.jpg"
            save(frontal(study) if n == key else other_view(study), path)
            taken = when + timedelta(minutes=11 * (len(views) - 1 - n))  # the first image by name is the last in time
            time = f"{int(taken.strftime('%H%M%S'))}.{n}75"  # leading zeros lost
            metadata.append(
                {
                    "dicom_id": name,
                    "subject_id": subject,
                    "study_id": study_id,
                    "PerformedProcedureStepDescription": procedure,
                    "ViewPosition": views[n],
                    "Rows": 96,
                    "Columns": 120,
                    "StudyDate": taken.strftime("%Y%m%d"),
                    "StudyTime": time,
                    "ProcedureCodeSequence_CodeMeaning": procedure,
                    "ViewCodeSequence_CodeMeaning": "",
                    "PatientOrientationCodeSequence_CodeMeaning": "Erect",
                }
            )
            if what != "not_in_split":
                split_rows.append({"dicom_id": name, "study_id": study_id, "subject_id": subject, "split": split})
        key_path = root / "files" / folder / f"{names[key]}.jpg"
        texts[folder] = mimic_report(record)
        expected = {name: record[name] for name in ("indication", "comparison", "findings", "impression")}
        reasons = {
            "lateral_only": "no_frontal",
            "no_view": "view_unknown",
            "truncated": "image_unreadable",
            "missing_image": "image_missing",
            "no_report_file": "report_missing",
            "empty_report": "no_report",
            "not_in_split": "not_in_split",
        }
        if what == "truncated":
            truncate(key_path)
        elif what == "missing_image":
            key_path.unlink()
        elif what == "no_report_file":
            texts[folder] = None
        elif what == "empty_report":
            texts[folder] = " FINAL REPORT\n INDICATION: cough\n FINDINGS:\n \n IMPRESSION:\n"
        if split == "validate":
            made.rejected[study_id] = "split_unused"
        elif what in reasons:
            made.rejected[study_id] = reasons[what]
        else:
            made.kept[study_id] = {
                **expected,
                "patient_id": subject,
                "view": view,
                "study_datetime": when,
                "sex": record["sex"],
                "race": record["race"],
                "split": split,
            }
            made.images[study_id] = frontal(study)
        patients[subject] = {
            "subject_id": subject,
            "gender": record["sex"],
            "anchor_age": int(record["age"]) - 2,
            "anchor_year": when.year - 2,
            "anchor_year_group": "2011 - 2013",
            "dod": "",
        }
        written = {
            "White": "WHITE - RUSSIAN",
            "Black": "BLACK/AFRICAN AMERICAN",
            "Asian": "ASIAN - CHINESE",
            "Hispanic": "HISPANIC/LATINO - DOMINICAN",
            "Other": "OTHER",
            None: "UNKNOWN",
        }
        admissions.append({"subject_id": subject, "hadm_id": str(index), "race": written[record["race"]]})
        admissions.append({"subject_id": subject, "hadm_id": str(index + 1000), "race": "PATIENT DECLINED TO ANSWER"})
        if split == "test":
            rexrank[study_id] = {
                "image_path": [f"/{folder}/{name}.jpg" for name, _ in zip(names, views, strict=False)],
                "section_findings": record["findings"],
                "section_impression": record["impression"],
                "frontal_lateral": [
                    {"AP": "antero-posterior", "PA": "postero-anterior", "": "antero-posterior"}.get(v, "lateral")
                    for v in views
                ],
                "split": "test",
                "subject_id": int(subject),
                "context": f"Age:50-60.Gender:{record['sex']}."
                + (f"Indication: {record['indication']}" if record["indication"] else "")
                + (f"Comparison: {record['comparison']}." if record["comparison"] else ""),
                "key_image_path": f"/{folder}/{names[key]}.jpg",
                "report": f"Findings: {record['findings'] or 'None.'} Impression: {record['impression'] or 'None.'}",
            }
    order = rng.permutation(len(metadata))
    write_csv(root / "mimic-cxr-2.0.0-metadata.csv.gz", [metadata[i] for i in order])
    write_csv(root / "mimic-cxr-2.0.0-split.csv.gz", split_rows)
    reports = root / "reports" / "files"
    if zipped:
        with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w") as archive:
            for folder, text in texts.items():
                if text is not None:
                    archive.writestr(f"files/{folder}.txt", text)
    else:
        for folder, text in texts.items():
            if text is not None:
                (reports / folder).parent.mkdir(parents=True, exist_ok=True)
                (reports / f"{folder}.txt").write_text(text, encoding="utf-8")
    made.extra["reports"] = root / "mimic-cxr-reports.zip" if zipped else root / "reports"
    made.extra["mimic_iv"] = root / "mimic-iv" / "hosp"
    made.extra["mimic_iv"].mkdir(parents=True)
    write_csv(made.extra["mimic_iv"] / "patients.csv.gz", list(patients.values()))
    write_csv(made.extra["mimic_iv"] / "admissions.csv.gz", admissions)
    made.extra["rexrank"] = root / "ReXRank_MIMICCXR_test.json"
    write_json(made.extra["rexrank"], rexrank)
    return made


# --- CheXpert Plus ---------------------------------------------------------------------------------------------------


def chexpert_plus(root: Path, number: int = 18, nested: bool = True) -> Material:
    """The table and PNG images, in `PNG/PNG/` where `nested`."""
    made = Material(root)
    rows, rexrank, patients = [], {}, {}
    everything = [("train", s) for s in phantoms(number)] + [("valid", s) for s in phantoms(5, "test")]
    order: dict[str, int] = {}
    for index, (split, study) in enumerate(everything):
        record = study.record
        patient = patients.setdefault(record["patient_id"], f"patient{64000 + len(patients)}")
        order[patient] = order.get(patient, 0) + 1
        study_id = f"{patient}_study{order[patient]}"
        folder = f"{split}/{patient}/study{order[patient]}"
        impression = record["impression"].upper() if record["impression"] else ""
        lateral_only = split == "train" and index == 4
        truncated = split == "train" and index == 7
        without = split == "train" and index == 10
        for n, view in enumerate(
            ["lateral"] if lateral_only else ["frontal", "frontal", "lateral"][: 1 + index % 3], start=1
        ):
            name = f"{folder}/view{n}_{view}"
            path = root / ("PNG/PNG" if nested else "PNG") / f"{name}.png"
            save(frontal(study) if n == 1 and view == "frontal" else other_view(study), path)
            if truncated and n == 1:
                truncate(path)
            date = f"on 1{n}-0{n}"  # the report is repeated with other anonymised dates
            rows.append(
                {
                    "path_to_image": f"{name}.jpg",
                    "path_to_dcm": f"{name}.dcm",
                    "frontal_lateral": view.title(),
                    "ap_pa": record["view"] if view == "frontal" else "",
                    "deid_patient_id": patient,
                    "patient_report_date_order": order[patient],
                    "report": "NARRATIVE: ...",
                    "section_narrative": "",
                    "section_clinical_history": f" {record['indication']}\n"
                    if record["indication"] and index % 2
                    else "",
                    "section_history": f"\n{record['indication']}" if record["indication"] else "",
                    "section_comparison": f"{date}\n",
                    "section_technique": "",
                    "section_procedure_comments": "",
                    "section_findings": f"\n{wrapped(record['findings'])}\n \n"
                    if record["findings"] and not without
                    else "",
                    "section_impression": f"\n{wrapped(impression)}\n" if impression and not without else " \n",
                    "section_end_of_impression": "",
                    "section_summary": "",
                    "section_accession_number": "",
                    "age": f"{record['age']:.1f}",
                    "sex": {"F": "Female", "M": "Male"}[record["sex"]],
                    "race": {"Hispanic": "White, Hispanic/Latino", None: "Unknown"}.get(record["race"], record["race"]),
                    "ethnicity": "Unknown",
                    "interpreter_needed": "No",
                    "insurance_type": "",
                    "recent_bmi": "",
                    "deceased": "No",
                    "split": split,
                }
            )
        if lateral_only or truncated or without:
            made.rejected[study_id] = "no_frontal" if lateral_only else "image_unreadable" if truncated else "no_report"
        else:
            made.kept[study_id] = {
                "patient_id": patient,
                "split": {"train": "train", "valid": "test"}[split],
                "view": record["view"],
                "indication": record["indication"],
                "comparison": "on 11-01",
                "findings": record["findings"],
                "impression": impression or None,
                "sex": record["sex"],
                "age": record["age"],
                "race": record["race"],
            }
            made.images[study_id] = frontal(study)
        if split == "valid":
            rexrank[study_id] = {
                "image_path": [f"{folder}/view1_frontal.png"],
                "report": f"Findings: {record['findings'] or 'None.'} Impression: {impression or 'None.'}",
                "context": f"Age:{record['age']:.1f}.Gender:{record['sex']}.Indication:"
                + (f" {record['indication']}\n" if record["indication"] else "nan")
                + "Comparison: None.",
                "section_clinical_history": record["indication"],
                "section_findings": f"\n{record['findings']}\n" if record["findings"] else None,
                "section_impression": f"\n{impression}\n" if impression else None,
                "frontal_lateral": ["Frontal"],
                "ap_pa": [record["view"]],
                "age": record["age"],
                "sex": {"F": "Female", "M": "Male"}[record["sex"]],
                "race": "Unknown",
                "ethnicity": "Unknown",
                "key_image_path": f"{folder}/view1_frontal.png",
            }
    write_csv(root / "df_chexpert_plus_240401.csv", rows)
    made.extra["rexrank"] = root / "ReXRank_CheXpertPlus.json"
    write_json(made.extra["rexrank"], rexrank)
    return made


# --- ReXGradient -----------------------------------------------------------------------------------------------------


def rexgradient(root: Path, number: int = 20) -> Material:
    """Metadata JSON and PNG images, some of 16 bits."""
    made = Material(root)
    for split, name in (("train", "train"), ("validation", "valid"), ("test", "test")):
        entries = {}
        for index, study in enumerate(phantoms(number if split == "train" else 4, split)):
            record = study.record
            patient = f"GRDN{hash_of(record['patient_id']) % 10**8:08d}"
            study_id = f"p{patient}_aGRDNACC{index}{split}_s1.2.826.{index}"
            folder = f"deid_png/{patient}/GRDNACC{index}{split}/studies/1.2.826.{index}/series/1/instances"
            views = [["PA", "LATERAL"], ["LL", "ANTERO_POSTERIOR"], ["POSTERO_ANTERIOR"], ["UNKNOWN", "AP"]][index % 4]
            what = (
                {3: "unknown", 5: "lateral", 7: "short_list", 9: "empty"}.get(index, "good")
                if split == "train"
                else "good"
            )
            if what == "unknown":
                views = ["N/A", "UNKNOWN"]
            elif what == "lateral":
                views = ["LATERAL", "LAO"]
            key = next((n for n, v in enumerate(views) if v in ("PA", "AP", "ANTERO_POSTERIOR", "POSTERO_ANTERIOR")), 0)
            for n in range(len(views)):
                image = frontal(study) if n == key else other_view(study)
                if index % 2:  # twelve bits of sixteen
                    image = Image.fromarray(np.asarray(image).astype(np.uint16) * 16)
                save(image, root / folder / f"{n}.png")
            entries[study_id] = {
                "PatientID": patient,
                "AccessionNumber": f"GRDNACC{index}{split}",
                "StudyInstanceUid": f"1.2.826.{index}",
                "StudyDate": record["study_datetime"].strftime("%Y%m%d"),
                "PatientSex": record["sex"],
                "PatientAge": f"{int(record['age']):03d}Y" if index else "002D",
                "Indication": record["indication"],
                "Comparison": record["comparison"],
                "Findings": record["findings"] if what != "empty" else " ",
                "Impression": record["impression"] if what != "empty" else None,
                "ImagePath": [f"../{folder}/{n}.png" for n in range(len(views))],
                "ImageViewPosition": views if what != "short_list" else views[:-1],
                "ImageShape": [[96, 120]] * len(views),
                "ImageModality": ["CR"] * len(views),
                "ImageBodyPart": ["CHEST"] * len(views),
            }
            if what != "good":
                made.rejected[study_id] = {
                    "unknown": "view_unknown",
                    "lateral": "no_frontal",
                    "short_list": "view_unknown",
                    "empty": "no_report",
                }[what]
                continue
            made.kept[study_id] = {
                "patient_id": patient,
                "split": split,
                "view": {"ANTERO_POSTERIOR": "AP", "POSTERO_ANTERIOR": "PA"}.get(views[key], views[key]),
                **{name: record[name] for name in ("indication", "comparison", "findings", "impression", "sex")},
                "study_datetime": record["study_datetime"].replace(hour=0, minute=0, second=0, microsecond=0),
            }
            made.images[study_id] = frontal(study)
        write_json(root / "metadata" / f"{name}_metadata_view_position.json", entries)
    return made


def hash_of(text: str) -> int:
    """A number from a text, the same on every run."""
    return int(hashlib.sha1(text.encode()).hexdigest()[:8], 16)


# --- IU X-ray --------------------------------------------------------------------------------------------------------


def iu_xray(root: Path, layout: str = "openi", number: int = 12, archive: bool = False) -> Material:
    """IU X-ray in the layout `openi` (XML, Kaggle's projections), `kaggle` (CSV) or `r2gen` (JSON)."""
    made = Material(root)
    reports, projections, documents, annotation, splits, rexrank = [], [], {}, {}, {}, {}
    names = {"train": "train", "validation": "valid", "test": "test"}
    uid = 0
    for split in names:
        for index, study in enumerate(phantoms(number if split == "train" else 4, split)):
            uid += 1
            record = study.record
            what = (
                {3: "lateral_only", 5: "missing_image", 7: "no_image", 9: "broken_xml"}.get(index, "good")
                if split == "train"
                else "good"
            )
            if layout != "openi" and what == "broken_xml":
                what = "good"
            if layout == "r2gen" and what in ("lateral_only", "no_image"):
                what = "good"
            # Open-i's first study has its number twice; the last part's width and start vary.
            stem = f"{uid}_IM-{uid:04d}"
            openi_prefix = "CXR1_" if uid == 1 else "CXR"
            study_id = f"{openi_prefix}{stem}" if layout == "openi" else f"CXR{stem}"
            lateral_first = index % 3 == 1
            order = ["Lateral", "Frontal"] if lateral_first else ["Frontal", "Lateral"]
            if what == "lateral_only":
                order = ["Lateral"]
            image_ids = [f"{stem}-{n}001" for n in range(1, len(order) + 1)] if what != "no_image" else []
            for n, (image_id, projection) in enumerate(zip(image_ids, order, strict=False)):
                image = frontal(study) if projection == "Frontal" else other_view(study)
                image = image.convert("RGB")
                path = root / "images" / "images_normalized" / f"{image_id}.dcm.png"
                if layout == "openi":
                    path = root / "NLMCXR_png" / f"{openi_prefix}{image_id}.png"
                elif layout == "r2gen":
                    path = root / "images" / study_id / f"{n}.png"
                if not (what == "missing_image" and projection == "Frontal"):
                    save(image, path)
                projections.append({"uid": uid, "filename": f"{image_id}.dcm.png", "projection": projection})
            sections = {name: record[name] for name in ("comparison", "indication", "findings", "impression")}
            reports.append(
                {
                    "uid": uid,
                    "MeSH": "normal",
                    "Problems": "normal",
                    "image": "Xray Chest PA and Lateral",
                    **{k: v or "" for k, v in sections.items()},
                }
            )
            texts = "\n".join(
                f'<AbstractText Label="{name.upper()}">{(text or "").replace("<", "&lt;")}</AbstractText>'
                for name, text in sections.items()
            )
            parents = "\n".join(f'<parentImage id="{openi_prefix}{image_id}"/>' for image_id in image_ids)
            documents[f"{uid}.xml"] = (
                f'<?xml version="1.0" encoding="utf-8"?>\n<eCitation><uId id="CXR{uid}"/>\n{texts}\n{parents}</eCitation>'
            )
            if what == "broken_xml":
                documents[f"{uid}.xml"] = documents[f"{uid}.xml"][:-20]
            splits.setdefault(names[split], []).append(study_id)
            annotation.setdefault({"validation": "val"}.get(split, split), []).append(
                {
                    "id": study_id,
                    "report": record["findings"] or record["impression"],
                    "image_path": [f"{study_id}/{n}.png" for n in range(len(image_ids))],
                    "split": split,
                }
            )
            if split != "train":
                rexrank.setdefault(names[split], {})[study_id] = {
                    "key_image_path": f"{study_id}/{order.index('Frontal')}.png",
                    "image_path": [f"{study_id}/{n}.png" for n in range(len(order))],
                    "report": f"Findings: {record['findings'] or 'None.'} Impression: {record['impression'] or 'None.'}",
                    "section_findings": record["findings"],
                    "section_impression": record["impression"],
                    "split": {"validation": "val"}.get(split, split),
                    "frontal_lateral": order,
                    "context": f"Indication: {record['indication'] or ''} Comparison: {record['comparison'] or ''}.",
                }
            reason = {
                "lateral_only": "no_frontal",
                "missing_image": "image_missing",
                "no_image": "no_image",
                "broken_xml": "report_unreadable",
            }.get(what)
            if reason:
                made.rejected[study_id] = reason
                continue
            if layout == "r2gen":
                sections = {
                    "indication": None,
                    "comparison": None,
                    "findings": record["findings"] or record["impression"],
                    "impression": None,
                }
            made.kept[study_id] = {"patient_id": f"CXR{uid}", "split": split, "view": "frontal", **sections}
            made.images[study_id] = frontal(study)
    root.mkdir(parents=True, exist_ok=True)
    if layout == "openi" and archive:
        import io
        import tarfile

        with tarfile.open(root / "NLMCXR_reports.tgz", "w:gz") as tar:
            for name, text in documents.items():
                info = tarfile.TarInfo(f"ecgen-radiology/{name}")
                info.size = len(text.encode())
                tar.addfile(info, io.BytesIO(text.encode()))
    elif layout == "openi":
        (root / "ecgen-radiology").mkdir()
        for name, text in documents.items():
            (root / "ecgen-radiology" / name).write_text(text, encoding="utf-8")
    elif layout == "kaggle":
        write_csv(root / "indiana_reports.csv", reports)
    else:
        write_json(root / "annotation.json", annotation)
    if layout == "r2gen":
        write_json(root / "ReXRank_IUXray_valid.json", rexrank["valid"])
        write_json(root / "ReXRank_IUXray_test.json", rexrank["test"])
    else:
        write_json(root / "splits.json", splits)
    write_csv(root / "indiana_projections.csv", projections)
    made.extra["test"] = root.parent / f"{root.name}_rexrank" / "ReXRank_IUXray_test.json"
    write_json(made.extra["test"], rexrank["test"])
    return made


# --- a private institution -------------------------------------------------------------------------------------------


def write_dicom(path: Path, pixels: np.ndarray, photometric: str = "MONOCHROME2", bits: int = 12) -> None:
    """An uncompressed DICOM file of one frame."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID = meta.MediaStorageSOPClassUID
    file.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    file.Rows, file.Columns = pixels.shape
    file.SamplesPerPixel = 1
    file.PhotometricInterpretation = photometric
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, bits, bits - 1, 0
    file.PixelData = pixels.astype("<u2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)


MAPPING = """
table: studies.csv
columns:
  study_id: accession
  patient_id: mrn
  image: file
  report: text
  view: projection
  study_datetime: taken
  sex: gender
  age: age
  race: race
  split: fold
values:
  view: {Thorax PA: PA, Thorax AP: AP, Thorax lateral: lateral}
  split: {dev: validation}
datetime_format: "%d.%m.%Y %H:%M"
title: Chest radiographs of one hospital
licence: internal
"""


def custom(root: Path, number: int = 16) -> Material:
    """A CSV with German column contents, DICOM (both photometric interpretations), PNG and JPEG images."""
    made = Material(root)
    rows = []
    for split, fold in (("train", "train"), ("validation", "dev"), ("test", "test")):
        for index, study in enumerate(phantoms(number if split == "train" else 3, split)):
            record = study.record
            study_id = record["study_id"]
            image = frontal(study)
            name = f"images/{study_id}." + ("dcm", "dcm", "png", "jpg")[index % 4]
            pixels = np.asarray(image).astype(np.uint16) * 16
            if index % 4 == 0:
                write_dicom(root / name, pixels)
            elif index % 4 == 1:  # low is white
                write_dicom(root / name, 4095 - pixels, "MONOCHROME1")
            else:
                save(image, root / name)
            lateral = f"images/{study_id}_lateral.png"
            save(other_view(study), root / lateral)
            views = [("Thorax lateral", lateral), (f"Thorax {record['view']}", name)]
            if split == "train" and index == 5:
                views = views[:1]
                made.rejected[study_id] = "no_frontal"
            text = f"Indication: {record['indication']}\n" if record["indication"] else ""
            text += f"Findings: {record['findings']}\n" if record["findings"] else ""
            text += f"Impression: {record['impression']}\n" if record["impression"] else ""
            for view, path in views:
                rows.append(
                    {
                        "accession": study_id,
                        "mrn": record["patient_id"],
                        "file": path,
                        "text": text,
                        "projection": view,
                        "taken": record["study_datetime"].strftime("%d.%m.%Y %H:%M"),
                        "gender": record["sex"].lower(),
                        "age": f"{int(record['age']):03d}Y",
                        "race": record["race"] or "",
                        "fold": fold,
                    }
                )
            if study_id not in made.rejected:
                made.kept[study_id] = {
                    "patient_id": record["patient_id"],
                    "split": split,
                    "view": record["view"],
                    "indication": record["indication"],
                    "findings": record["findings"],
                    "impression": record["impression"],
                    "sex": record["sex"],
                    "age": float(int(record["age"])),
                    "race": record["race"],
                    "study_datetime": record["study_datetime"].replace(second=0, microsecond=0),
                }
                made.images[study_id] = image
    write_csv(root / "studies.csv", rows)
    made.extra["mapping"] = root / "mapping.yaml"
    made.extra["mapping"].write_text(MAPPING, encoding="utf-8")
    return made
