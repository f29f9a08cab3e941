"""Studies that could not be used, each with its reason: nothing that a source holds is lost silently."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pyarrow as pa

from data_prep.study import ALL_SPLITS, write_parquet

REJECTS_SCHEMA = pa.schema(
    [
        pa.field("study_id", pa.string(), nullable=False),
        pa.field("patient_id", pa.string()),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("split", pa.string()),  # the split it would have been in
        pa.field("reason", pa.string(), nullable=False),  # one of REASONS
        pa.field("detail", pa.string()),  # what exactly, in one line
        pa.field("file", pa.string()),  # path inside the source, where one is to blame
    ]
)

# Reason → what it means, as the data card prints it.
NO_REPORT = "no_report"
REPORT_MISSING = "report_missing"
REPORT_UNREADABLE = "report_unreadable"
NO_IMAGE = "no_image"
NO_PATIENT = "no_patient"
NO_FRONTAL = "no_frontal"
VIEW_UNKNOWN = "view_unknown"
IMAGE_MISSING = "image_missing"
IMAGE_UNREADABLE = "image_unreadable"
IMAGE_FLAT = "image_flat"
PATH_OUTSIDE = "path_outside"
NOT_IN_SPLIT = "not_in_split"
SPLIT_UNUSED = "split_unused"
REASONS: Mapping[str, str] = {
    NO_REPORT: "neither findings nor impression",
    REPORT_MISSING: "the report is not in the source",
    REPORT_UNREADABLE: "the report file cannot be read",
    NO_IMAGE: "the study lists no image",
    NO_PATIENT: "the study's patient is not given",
    NO_FRONTAL: "only lateral or oblique images",
    VIEW_UNKNOWN: "no image is known to be frontal",
    IMAGE_MISSING: "the key image is not in the source",
    IMAGE_UNREADABLE: "the key image cannot be decoded",
    IMAGE_FLAT: "the key image has almost no contrast: nothing would be seen on it",
    PATH_OUTSIDE: "the image path leaves the image folder",
    NOT_IN_SPLIT: "the source's split file does not name the study",
    SPLIT_UNUSED: "the source's own split is not used",
}


def reject_frame(studies: pd.DataFrame, reason: str, detail=None, file=None) -> pd.DataFrame:
    """Reject rows for `studies` (columns study_id, patient_id, dataset, split).

    Args:
        detail, file: one string for all, a sequence as long as `studies`, or None.
    """
    if reason not in REASONS:
        raise ValueError(f"unknown reject reason {reason!r}")
    frame = studies[["study_id", "patient_id", "dataset", "split"]].copy()
    frame["reason"] = reason
    frame["detail"] = detail
    frame["file"] = file
    return frame[REJECTS_SCHEMA.names]


def empty_rejects() -> pd.DataFrame:
    """A reject frame without rows."""
    return pd.DataFrame({name: pd.Series(dtype=object) for name in REJECTS_SCHEMA.names})


def write_rejects(rejects: pd.DataFrame, path: Path) -> None:
    """Write the rejects, sorted by study, to `path` atomically."""
    rejects = rejects.sort_values(["study_id", "reason"], kind="stable")
    columns = [
        pa.array(rejects[field.name].astype(object).where(rejects[field.name].notna(), None), field.type)
        for field in REJECTS_SCHEMA
    ]
    table = pa.Table.from_arrays(columns, schema=REJECTS_SCHEMA)
    unknown = set(table.column("split").unique().to_pylist()) - {*ALL_SPLITS, None}
    if unknown:
        raise ValueError(f"{path}: unknown split(s) {sorted(unknown)} among the rejects")
    write_parquet(table, path)
