"""ReXGradient-160K: metadata JSON and PNG images.

    python -m data_prep rexgradient --source ReXGradient-160K --out data/rexgradient

DIR holds `metadata/{train,valid,test}_metadata_view_position.json` (without views, `…_metadata.json`, nothing is known to be
frontal) and `deid_png/`. The key image is a study's first frontal one. Official splits; dates have no time of day, so
studies of one day are not each other's prior.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from data_prep.demographics import age_of, sexes
from data_prep.parts import Counted
from data_prep.rejects import NO_FRONTAL, NO_IMAGE, NO_PATIENT, VIEW_UNKNOWN, reject_frame
from data_prep.sections import SECTIONS, with_raw
from data_prep.source import Found, Options, find_optional, found_frame, iterate_json, require_keys
from data_prep.tables import SourceError, as_text, is_nothing
from data_prep.texts import Texts

DATASET = "rexgradient"
TITLE = "ReXGradient-160K (Gradient Health; Zhang et al. 2025)"
LICENCE = "ReXGradient data use agreement: non-commercial research, no redistribution."
SPLIT_NAMES = {"train": "train", "valid": "validation", "test": "test"}
FRONTAL = {"PA": "PA", "POSTERO_ANTERIOR": "PA", "AP": "AP", "ANTERO_POSTERIOR": "AP"}
OTHER_VIEWS = ("LATERAL", "LL", "RL", "LLD", "RLD", "LAO", "RAO", "LPO", "RPO")
NEEDED = ("PatientID", "ImagePath")
EXPECTED = ("Indication", "Comparison", "Findings", "Impression", "ImageViewPosition")  # in some entry of each file


def inputs(root: Path, options: Options) -> list[Path]:
    """The metadata file of each split that is there."""
    return list(_metadata(root).values())


def read(root: Path, options: Options) -> Found:
    """All studies of the metadata files.

    Raises:
        SourceError: no metadata, or an entry that is not what it should be.
    """
    rejected: dict[str, list[dict]] = {}
    texts = Texts()

    def usable() -> Iterator[dict]:
        for split, path in _metadata(root).items():
            keys: set[str] = set()
            for study_id, entry in islice(iterate_json(path), options.sample):
                if not isinstance(entry, dict) or any(key not in entry for key in NEEDED):
                    raise SourceError(
                        f"{path}: study {study_id} has no {' or '.join(NEEDED)}; expected ReXGradient's metadata"
                    )
                keys.update(entry)
                patient = as_text(entry["PatientID"])
                row = {"study_id": study_id, "patient_id": patient, "dataset": DATASET, "split": split}
                reason, view, image = (NO_PATIENT, None, None) if is_nothing(patient) else key_image(entry)
                if reason:
                    rejected.setdefault(reason, []).append(row)
                    continue
                yield {
                    **row,
                    "view": view,
                    "image_source": image,
                    **(with_raw({name: entry.get(name.title()) for name in SECTIONS}) if options.mine(patient) else {}),
                    "study_datetime": entry.get("StudyDate"),
                    "sex": entry.get("PatientSex"),
                    "age": age_of(entry.get("PatientAge")),
                }
            require_keys(path, keys, EXPECTED, "{train,valid,test}_metadata_view_position.json")

    studies = found_frame(usable(), DATASET, texts, options.mine)
    if not len(studies):
        raise SourceError(
            f"{root}: no study has a known frontal view; expected *_metadata_view_position.json in metadata/"
        )
    # Anything that is not a date (a blank, a zero) is an unknown date.
    studies["study_datetime"] = pd.to_datetime(
        studies["study_datetime"].astype("string"), format="%Y%m%d", errors="coerce"
    )
    studies["sex"] = sexes(studies["sex"])
    found = Found(studies, texts, options.images or root, TITLE, LICENCE, credentialed=True)
    undated = int(options.own(studies)["study_datetime"].isna().sum())
    found.notes.append(
        Counted("Dates without a time of day; {0:,} studies have none. Race is not given.", (undated,), always=True)
    )
    if rejected:
        frames = [reject_frame(pd.DataFrame(rows), reason) for reason, rows in rejected.items()]
        found.rejects = pd.concat(frames, ignore_index=True)
    return found


def _metadata(root: Path) -> dict[str, Path]:
    found = {}
    for name, split in SPLIT_NAMES.items():
        files = (f"{name}_metadata_view_position.json", f"{name}_metadata.json")
        path = find_optional(root, [folder + file for file in files for folder in ("metadata/", "")])
        if path is not None:
            found[split] = path
    if "train" not in found:
        raise SourceError(
            f"{root}: metadata/train_metadata_view_position.json not found; expected ReXGradient-160K's folder, with "
            "metadata/ and deid_png/"
        )
    return found


def key_image(entry: Mapping[str, Any]) -> tuple[str | None, str | None, str | None]:
    """(None, view, path) of the first frontal image; (reason, None, None) where there is none."""
    paths = [str(path) for path in entry.get("ImagePath") or []]
    views = entry.get("ImageViewPosition") or []
    if not paths:
        return NO_IMAGE, None, None
    if len(views) != len(paths):  # a list of another length does not say which image is which
        return VIEW_UNKNOWN, None, None
    names = [str(view).strip().upper().replace("-", "_").replace(" ", "_") for view in views]
    for path, name in zip(paths, names, strict=True):
        if name in FRONTAL:
            return None, FRONTAL[name], path.removeprefix("../")  # ../deid_png/… from metadata/ is deid_png/… from here
    return (NO_FRONTAL if all(name in OTHER_VIEWS for name in names) else VIEW_UNKNOWN), None, None
