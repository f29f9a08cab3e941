"""IU X-ray (Open-i, Indiana University): Open-i XML, Kaggle CSV or R2Gen JSON reports; Open-i, Kaggle or R2Gen images.

    python -m data_prep iu_xray --source DIR --out data/iu_xray

DIR holds reports, as the first of these that is there:

- `ecgen-radiology/<uid>.xml`, or the archive `NLMCXR_reports.tgz` (Open-i),
- `indiana_reports.csv` (Kaggle),
- `annotation.json` (R2Gen; has no indication),

views, as `indiana_projections.csv` (Kaggle) or, for R2Gen's images, `ReXRank_IUXray_*.json` (or neither, with
--assume-first-frontal), and the images anywhere below. `test` is what a file given by --rexrank lists (590 studies), and all
else is trained on, as in the paper. Without one the split is, in this order, that of `splits.json` (train, valid, test: lists
of study ids), `annotation.json`, `ReXRank_IUXray_{valid,test}.json` (the rest is training), or else a seeded one of R2Gen's
proportions. R2Gen's 296 validation studies are trained on too, where there is a test split: the paper validates on MIMIC-CXR.
A model of this set alone wants --own-validation, which keeps them.

The collection has no patient identity, dates, sex, age or race: each study counts as one patient, without a prior.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import pandas as pd
from defusedxml import DefusedXmlException, ElementTree

from data_prep.rejects import (
    IMAGE_MISSING,
    NO_FRONTAL,
    NO_IMAGE,
    NOT_IN_SPLIT,
    REPORT_MISSING,
    REPORT_UNREADABLE,
    VIEW_UNKNOWN,
    reject_frame,
)
from data_prep.source import (
    Found,
    Options,
    blank_to_none,
    find_optional,
    found_frame,
    hidden,
    iterate_archive,
    read_json,
)
from data_prep.sources.rexrank import read_test_files
from data_prep.splits import random_split
from data_prep.tables import SourceError, one_line, read_csv
from data_prep.texts import Texts

DATASET = "iu_xray"
TITLE = "IU X-ray (Indiana University Chest X-ray Collection, Open-i; Demner-Fushman et al. 2015)"
LICENCE = "CC BY-NC-ND 4.0: non-commercial, with attribution, unmodified"
R2GEN_SHARES = (2069, 296, 590)  # R2Gen's split, which ReXrank uses
SPLIT_NAMES = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm")
REPORT_PATTERNS = ("ecgen-radiology", "*/ecgen-radiology", "NLMCXR_reports.tgz", "NLMCXR_reports.tar.gz", "indiana_reports.csv", "annotation.json")  # fmt: skip
VIEWS_NEEDED = (
    "views of the images not found (expected indiana_projections.csv or ReXRank_IUXray_*.json); "
    "add one, or take each study's first image as frontal with --assume-first-frontal"
)


def inputs(root: Path, options: Options) -> list[Path]:
    """The report files, the views and the split."""
    paths = [_reports_path(root)]
    for name in ("annotation.json", "indiana_projections.csv", "splits.json"):
        if (path := root / name).is_file() and path not in paths:
            paths.append(path)
    return paths + sorted(root.glob("ReXRank_IUXray_*.json"))


def read(root: Path, options: Options) -> Found:
    """All studies of the folder.

    Raises:
        SourceError: no reports, no views, or a file that is not what its name says.
    """
    path = _reports_path(root)
    notes = []
    split_of, split_note, rest = _splits(root)
    others: list[str] = []  # studies of other parts, whose reports are not looked into
    if path.name == "indiana_reports.csv":
        reports, unreadable = _kaggle_reports(path), []
    elif path.name == "annotation.json":
        reports, unreadable = _r2gen_reports(path), []
        notes.append("Reports from R2Gen's annotation.json: lower-cased, not split into sections, all as findings.")
    else:
        # The split that is made here is one of the studies whose reports can be used: all have to be read.
        given = split_of or options.rexrank
        mine = (lambda uid: options.mine(f"CXR{uid}")) if given else (lambda uid: True)
        reports, unreadable, others = _openi_reports(path, options.sample, mine)
    views = _views(root)
    if not views and not options.assume_first_frontal:
        raise SourceError(f"{root}: {VIEWS_NEEDED}")
    images_root = options.images or root
    files = _image_files(images_root)
    if options.rexrank:
        listed = {
            uid_of(row["study_id"], row["study_id"]): row["study_id"]
            for row in read_test_files(options.rexrank, DATASET)
        }
        own = {
            uid: (study_id, split if split == "validation" else "train") for uid, (study_id, split) in split_of.items()
        }
        split_of, rest = {**own, **{uid: (study_id, "test") for uid, study_id in listed.items()}}, "train"
    elif split_note:
        notes.append(split_note)
    if not options.own_validation and any(split == "test" for _, split in split_of.values()):
        split_of = {uid: (id_, "train" if split == "validation" else split) for uid, (id_, split) in split_of.items()}
        notes.append("R2Gen's validation studies are trained on, as in the paper (--own-validation keeps them).")

    rows, bad = [], []
    images_of: dict[str, list[str]] = {}
    for uid, report in reports.items():
        # Images in the order of their names: the order of ReXrank's 0.png, 1.png, ….
        images_of[uid] = images = sorted(report.pop("images", None) or views.get(uid, {}))
        study_id, split = split_of.get(uid, (None, rest))
        study_id = study_id or report.pop("study_id", None) or _study_id(uid, images)
        report.pop("study_id", None)
        row = {"study_id": study_id, "patient_id": f"CXR{uid}", "split": split, **report}
        if split_of and split is None:
            bad.append((row, NOT_IN_SPLIT, None, None))
            continue
        reason, detail, image = _key_image(images, _named_as(images, views.get(uid, {})), files, options)
        if reason:
            bad.append((row, reason, detail, image))
        else:
            rows.append({**row, "view": "frontal", "image_source": image})
    for uid, detail in unreadable:
        study_id, split = split_of.get(uid, (f"CXR{uid}", rest))
        bad.append(
            ({"study_id": study_id, "patient_id": f"CXR{uid}", "split": split}, REPORT_UNREADABLE, detail, f"{uid}.xml")
        )
    if options.sample is None:
        seen = {*reports, *others, *(uid for uid, _ in unreadable)}
        for uid, (study_id, split) in split_of.items():
            if uid not in seen:
                row = {"study_id": study_id, "patient_id": f"CXR{uid}", "split": split}
                bad.append((row, REPORT_MISSING, "named by the split file", None))

    texts = Texts()
    studies = found_frame(rows, DATASET, texts, options.mine)
    if not split_of and len(studies):
        studies["split"] = random_split(studies["patient_id"], R2GEN_SHARES, options.seed)
        notes.append(
            f"Split made here by seed {options.seed} in R2Gen's proportions: scores do not compare with ReXrank's. "
            "Put R2Gen's annotation.json or ReXrank's files beside the reports for their split."
        )
    rejects = [
        reject_frame(pd.DataFrame([{**row, "dataset": DATASET}]), reason, detail, file)
        for row, reason, detail, file in bad
    ]
    found = Found(studies, texts, images_root, TITLE, LICENCE, credentialed=False, notes=notes, priors=False)
    if rejects:
        found.rejects = pd.concat(rejects, ignore_index=True)
    found.test_image = lambda path: _test_image(path, images_of, files)
    found.notes.append("No dates and no patient identity: each study counts as one patient's first, without a prior.")
    return found


def _reports_path(root: Path) -> Path:
    path = find_optional(root, REPORT_PATTERNS)
    if path is None:
        raise SourceError(
            f"{root}: no IU X-ray reports found; expected ecgen-radiology/*.xml or NLMCXR_reports.tgz (Open-i), "
            "indiana_reports.csv (Kaggle) or annotation.json (R2Gen)"
        )
    return path


def _openi_reports(
    path: Path, sample: int | None, mine: Callable[[str], bool]
) -> tuple[dict[str, dict], list[tuple[str, str]], list[str]]:
    """uid → sections and image names, from a folder of XML or an archive of it; the files that cannot be read; and the uids
    that are not `mine`."""
    documents: Iterator[tuple[str, Callable[[], bytes]]]
    if path.is_dir():
        names = sorted((p for p in path.glob("*.xml") if not hidden(p.name)), key=lambda p: (len(p.name), p.name))
        documents = ((p.name, p.read_bytes) for p in names[:sample])
    else:
        documents = ((Path(name).name, partial(bytes, content)) for name, content in iterate_archive(path, ".xml"))
    reports, unreadable, others = {}, [], []
    for name, content in documents:
        if not mine(name.removesuffix(".xml")):
            others.append(name.removesuffix(".xml"))
            continue
        try:
            root = ElementTree.fromstring(content())
        except (ElementTree.ParseError, DefusedXmlException, ValueError) as error:
            unreadable.append((name.removesuffix(".xml"), one_line(error)))
            continue
        sections = {}
        for element in root.iter("AbstractText"):
            sections[(element.get("Label") or "").lower()] = blank_to_none("".join(element.itertext()))
        report = {
            **{key: sections.get(key) for key in ("indication", "comparison", "findings", "impression")},
            "images": [image_name(e.get("id") or "") for e in root.iter("parentImage")],
            "study_id": _openi_study_id([e.get("id") or "" for e in root.iter("parentImage")]),
        }
        _add(reports, name.removesuffix(".xml"), report, path)
    if not reports and not unreadable and not others:
        raise SourceError(f"{path}: holds no .xml report")
    return reports, unreadable, others


def _kaggle_reports(path: Path) -> dict[str, dict]:
    table = read_csv(path, ("uid", "indication", "comparison", "findings", "impression"))
    columns = ("indication", "comparison", "findings", "impression")
    reports: dict[str, dict] = {}
    for row in table.astype(object).where(table.notna(), None).to_dict("records"):
        if row["uid"]:
            _add(reports, row["uid"].strip(), {name: blank_to_none(row[name]) for name in columns}, path)
    return reports


def _add(reports: dict[str, dict], uid: str, report: dict, path: Path) -> None:
    if uid in reports:
        raise SourceError(f"{path}: report {uid} is there twice; expected once")
    reports[uid] = report


def _r2gen_reports(path: Path) -> dict[str, dict]:
    reports = {}
    for split in ("train", "val", "test"):
        for entry in read_json(path, dict).get(split, []):
            study_id = str(entry.get("id"))
            images = [str(image) for image in entry.get("image_path") or []]
            report = {"findings": blank_to_none(entry.get("report")), "images": images, "study_id": study_id}
            _add(reports, uid_of(study_id, path), report, path)
    return reports


def image_name(name: str) -> str:
    """One name for an image in all layouts: `2384_IM-0942-1001` for `CXR2384_IM-0942-1001.png` (Open-i) and
    `2384_IM-0942-1001.dcm.png` (Kaggle); Open-i's `CXR1_1_IM-0001-3001` is Kaggle's `1_IM-0001-3001`."""
    base = name.rsplit("/", 1)[-1]
    match = re.match(r"(?:CXR(?:\d+_(?=\d))?)?(\d+_IM-[\d-]+)", base)
    return match[1] if match else name


def uid_of(study_id: str, where: Path) -> str:
    """The report number in a study id: 2384 of CXR2384_IM-0942.

    Raises:
        SourceError: it has none.
    """
    if not (match := re.match(r"CXR(\d+)_", study_id)):
        raise SourceError(f"{where}: study id {study_id!r} is not of the form CXR<number>_IM-<number>")
    return match[1]


def _openi_study_id(image_ids: list[str]) -> str | None:
    """R2Gen's and ReXrank's key: the first image's id without its last part (CXR2384_IM-0942 of CXR2384_IM-0942-1001)."""
    first = min(image_ids, default="")
    return first.rsplit("-", 1)[0] if "-IM" in first or "_IM-" in first else None


def _study_id(uid: str, images: list[str]) -> str:
    return f"CXR{images[0].rsplit('-', 1)[0]}" if images and images[0].startswith(f"{uid}_IM-") else f"CXR{uid}"


def _views(root: Path) -> dict[str, dict[str, str]]:
    """uid → image name → Frontal or Lateral."""
    views: dict[str, dict[str, str]] = {}
    projections = root / "indiana_projections.csv"
    if projections.is_file():
        table = read_csv(projections, ("uid", "filename", "projection")).dropna()
        for uid, name, projection in table.itertuples(index=False):
            views.setdefault(uid.strip(), {})[image_name(name)] = projection.strip()
    for path in sorted(root.glob("ReXRank_IUXray_*.json")):
        for study_id, study in read_json(path, dict).items():
            paths, labels = study.get("image_path") or [], study.get("frontal_lateral") or []
            if len(paths) == len(labels):
                views.setdefault(uid_of(study_id, path), {}).update(zip(paths, labels, strict=True))
            elif study.get("key_image_path"):  # lists of other lengths do not say which image is which
                views.setdefault(uid_of(study_id, path), {})[study["key_image_path"]] = "Frontal"
    return views


def _image_files(root: Path) -> dict[str, str]:
    """Image name → path below `root`, of every image file; R2Gen's images (CXR…/0.png) by their path."""
    files: dict[str, str] = {}
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders.sort()
        for name in sorted(names):
            if name.lower().endswith(IMAGE_SUFFIXES) and not hidden(name) and name.isprintable():  # else not text
                relative = Path(folder, name).relative_to(root)
                key = "/".join(relative.parts[-2:]) if re.fullmatch(r"\d+\.\w+", name) else image_name(name)
                files.setdefault(key, relative.as_posix())
    if not files:
        raise SourceError(f"{root}: no image files ({', '.join(IMAGE_SUFFIXES)}) found below it; give --images DIR")
    return files


def _named_as(images: list[str], views: Mapping[str, str]) -> Mapping[str, str]:
    """The study's views by the names of `images`. R2Gen's 0.png, 1.png, … are the study's images in the order of their
    Kaggle names, where there are as many of one as of the other."""
    kaggle = sorted(name for name in views if "/" not in name)
    if any(image in views for image in images) or len(kaggle) != len(images):
        return views
    return {image: views[name] for image, name in zip(images, kaggle, strict=True)}


def _key_image(
    images: list[str], views: Mapping[str, str], files: Mapping[str, str], options: Options
) -> tuple[str | None, str | None, str | None]:
    """The first frontal image's file (ReXrank's rule), as (None, None, file); else (reason, detail, file or None)."""
    if not images:
        return NO_IMAGE, None, None
    if not views:
        if not options.assume_first_frontal:
            return VIEW_UNKNOWN, "not in indiana_projections.csv", None
        views = {images[0]: "Frontal"}
    frontal = [image for image in images if views.get(image) == "Frontal"]
    if not frontal:
        known = sum(image in views for image in images)
        return (NO_FRONTAL if known == len(images) else VIEW_UNKNOWN), f"{known} of {len(images)} views known", None
    if frontal[0] not in files:
        return IMAGE_MISSING, "no file of that name", frontal[0]
    return None, None, files[frontal[0]]


def _test_image(path: str, images_of: Mapping[str, list[str]], files: Mapping[str, str]) -> str | None:
    """The file of an image that ReXrank's test file names: R2Gen's CXR3030_IM-1405/0.png, or the study's image of that
    number in the order of their names."""
    if path in files:
        return files[path]
    match = re.fullmatch(r"CXR(\d+)_[^/]*/(\d+)\.\w+", path)
    images = images_of.get(match[1], []) if match else []
    return files.get(images[int(match[2])]) if match and int(match[2]) < len(images) else None


def _splits(root: Path) -> tuple[dict[str, tuple[str, str]], str | None, str | None]:
    """uid → (study id, split), a note on where the split is from, and the split of studies it does not name (None: not
    used). Empty where the folder says nothing."""
    splits: dict[str, tuple[str, str]] = {}

    def add(study_id: str, name: str, path: Path) -> None:
        if name not in SPLIT_NAMES:
            raise SourceError(f"{path}: unknown split {name!r}, expected {', '.join(SPLIT_NAMES)}")
        uid = uid_of(study_id, path)
        if splits.setdefault(uid, (study_id, SPLIT_NAMES[name])) != (study_id, SPLIT_NAMES[name]):
            raise SourceError(f"{path}: study {study_id} is in two splits")

    if (path := root / "splits.json").is_file():
        for name, ids in read_json(path, dict).items():
            for study_id in ids if isinstance(ids, list) else []:
                add(str(study_id), name, path)
        return splits, "Split from splits.json.", None
    if (path := root / "annotation.json").is_file():
        for name, entries in read_json(path, dict).items():
            for entry in entries:
                add(str(entry["id"]), name, path)
        return splits, "R2Gen's split, from annotation.json.", None
    for name in ("valid", "test"):
        for path in sorted(root.glob(f"ReXRank_IUXray_{name}*.json")):
            for study_id in read_json(path, dict):
                add(study_id, name, path)
    if splits:
        return (
            splits,
            "Validation and test as ReXrank's files beside the reports name them; the rest is training.",
            "train",
        )
    return {}, None, None
