"""The study table: the one definition of what a prepared study is, and the only way in and out of its Parquet files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.sections import RAW
from foundation.errors import OneLineError
from foundation.files import whole_file

SPLITS = ("train", "validation", "test")
# What is left of the source's test patients where `test` is what a ReXrank file lists: their priors, and else used for
# nothing. A table of its own, there only where it holds a study.
TEST_REST = "test_rest"
ALL_SPLITS = (*SPLITS, TEST_REST)

STUDY_SCHEMA = pa.schema(
    [
        pa.field("study_id", pa.string(), nullable=False),
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("image", pa.string(), nullable=False),  # path inside the prepared folder
        pa.field("view", pa.string(), nullable=False),  # AP, PA or frontal
        pa.field("indication", pa.string()),
        pa.field("comparison", pa.string()),
        pa.field("findings", pa.string()),
        pa.field("impression", pa.string()),
        # As the source has them, with line breaks; findings and impression are the same, white space made single.
        pa.field("findings_raw", pa.string()),
        pa.field("impression_raw", pa.string()),
        pa.field("prior_study_id", pa.string()),
        pa.field("prior_image", pa.string()),  # path inside the prepared folder
        pa.field("prior_report", pa.string()),  # form of `report_text`
        pa.field("encounter", pa.int32(), nullable=False),  # 1 = the patient's first
        pa.field("study_datetime", pa.timestamp("us")),
        pa.field("sex", pa.string()),  # F or M
        pa.field("age", pa.float32()),  # years
        pa.field("race", pa.string()),
    ]
)
VIEWS = ("AP", "PA", "frontal")
SEXES = ("F", "M")


def ids_fingerprint(study_ids: Iterable[str]) -> str:
    """SHA-256 of a set of study ids, whatever their order."""
    return hashlib.sha256("\n".join(sorted(set(study_ids))).encode()).hexdigest()


def references_fingerprint(references: Mapping[str, str]) -> str:
    """SHA-256 of study ids with their references, whatever their order."""
    lines = sorted(f"{study_id}\0{reference}" for study_id, reference in references.items())
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


class StudyError(OneLineError):
    """A study table, or a file that should be one, is not what the schema says. The message says which and how to mend it."""


def report_text(findings: str | None, impression: str | None) -> str:
    """The report as one text: `Findings: … Impression: …`, a missing section left out (no heading).

    Used for training targets, prior reports and rewards. ReXrank's ground truth instead prints the word None for a
    missing section; `evaluation` makes that form.
    """
    parts = []
    if findings:
        parts.append(f"Findings: {findings}")
    if impression:
        parts.append(f"Impression: {impression}")
    return " ".join(parts)


def table_paths(folder: Path) -> list[Path]:
    """The study tables of a prepared folder: the three that are always there, and TEST_REST's where it has one."""
    rest = folder / f"{TEST_REST}.parquet"
    return [*(folder / f"{split}.parquet" for split in SPLITS), *([rest] if rest.is_file() else [])]


def study_table(studies: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Study records (mappings with the schema's keys; absent nullable keys become null, an absent raw section its section)
    as a checked table.

    Raises:
        StudyError: an unknown key, a missing required value, a wrong type, a repeated study, a study without a report.
    """
    rows = list(studies)
    names = set(STUDY_SCHEMA.names)
    for row in rows:
        if unknown := sorted(set(row) - names):
            raise StudyError(f"study {row.get('study_id')!r} has unknown column(s) {', '.join(unknown)}")
    try:
        table = pa.Table.from_pylist(
            [
                {name: row.get(name) for name in STUDY_SCHEMA.names}
                | {raw: row.get(raw) or row.get(name) for name, raw in RAW.items()}
                for row in rows
            ],
            STUDY_SCHEMA,
        )
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise StudyError(f"a study has a value of the wrong type: {error}") from error
    check_studies(table)
    return table


def check_studies(table: pa.Table, where: str = "study table") -> None:
    """Raise `StudyError` unless `table` has the schema's columns and types and each row keeps its rules."""
    missing = [f.name for f in STUDY_SCHEMA if f.name not in table.column_names]
    if missing:
        raise StudyError(f"{where}: column(s) {', '.join(missing)} missing; prepare the data again with this version")
    for field in STUDY_SCHEMA:
        column = table.column(field.name)
        if column.type != field.type:
            raise StudyError(f"{where}: column {field.name} is {column.type}, expected {field.type}")
        if not field.nullable and column.null_count:
            raise StudyError(f"{where}: column {field.name} has {column.null_count} empty value(s)")
    if table.num_rows == 0:
        return
    # Whole columns at a time: a MIMIC-sized table is checked in under a second.
    keys = table.group_by(["dataset", "study_id"]).aggregate([([], "count_all")])
    repeated = keys.filter(pc.greater(keys.column("count_all"), 1)).column("study_id")
    if len(repeated):
        raise StudyError(f"{where}: study {repeated[0]} appears twice")
    column = table.column
    rules = (
        ("split", _not_one_of(column("split"), ALL_SPLITS), f"expected one of {', '.join(ALL_SPLITS)}"),
        ("view", _not_one_of(column("view"), VIEWS), f"expected one of {', '.join(VIEWS)}"),
        ("sex", _not_one_of(column("sex"), SEXES), "expected F, M or null"),
        ("encounter", pc.less(column("encounter"), 1), "the first is 1"),
        ("findings", pc.and_(_blank(column("findings")), _blank(column("impression"))), "and no impression either"),
        *(
            (raw, pc.and_(_blank(column(name)), pc.invert(_blank(column(raw)))), f"but no {name}")
            for name, raw in RAW.items()
        ),
        ("prior_study_id", pc.equal(column("prior_study_id"), column("study_id")), "which is itself"),
    )
    for name, broken, expected in rules:
        if len(rows := table.filter(broken)):  # null counts as not broken
            study = rows.column("study_id")[0]
            raise StudyError(f"{where}: study {study} has {name} {rows.column(name)[0].as_py()!r}; {expected}")


def _not_one_of(column: pa.ChunkedArray, allowed: Iterable[str]) -> pa.ChunkedArray:
    return pc.and_(pc.is_valid(column), pc.invert(pc.is_in(column, value_set=pa.array(allowed))))


def _blank(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.equal(pc.fill_null(column, ""), "")


def write_studies(table: pa.Table, path: Path) -> None:
    """Check `table` and write it to `path` atomically (temporary name, then rename)."""
    check_studies(table, str(path))
    write_parquet(table.select(STUDY_SCHEMA.names), path)


def write_study_batches(tables: Iterable[pa.Table], path: Path) -> None:
    """Check study tables and write them to `path` one after another, a row group each, atomically."""
    with whole_file(path) as temporary, pq.ParquetWriter(temporary, STUDY_SCHEMA, compression="zstd") as writer:
        for table in tables:
            check_studies(table, str(path))
            writer.write_table(table.select(STUDY_SCHEMA.names))


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write any table to `path` atomically."""
    with whole_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_studies(folder: Path | str, split: str) -> pa.Table:
    """The checked study table of one split of a prepared folder.

    Raises:
        StudyError: the folder or the split's file is missing, unreadable, empty, or not a study table.
    """
    folder = Path(folder)
    path = folder / f"{split}.parquet"
    if not folder.is_dir():
        raise StudyError(
            f"no prepared data in {folder}; make it with: make data DATASET={folder.name} SOURCE=/path/to/the/source"
        )
    if not path.is_file():
        raise StudyError(
            f"{path} is missing; prepare the data again with: make data DATASET={folder.name} SOURCE=… FORCE=1"
        )
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise StudyError(
            f"{path} is not a readable Parquet file ({error}); prepare the data again with FORCE=1"
        ) from error
    for raw in RAW.values():
        # Of a folder prepared before raw sections were kept. Training needs none; evaluation says what to do about it.
        if raw not in table.column_names:
            table = table.append_column(STUDY_SCHEMA.field(raw), pa.nulls(len(table), pa.string()))
    check_studies(table, str(path))
    if table.num_rows == 0:
        raise StudyError(
            f"{path} holds no study; see card.md and rejects.parquet beside it for what was dropped and why"
        )
    return table
