"""Columns of a `custom` table as the study table has them: views, ages, times, words for sex and race, what DICOM headers add."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from data_prep.demographics import age_of, races, sexes, unknown_words
from data_prep.dicom_headers import read_headers
from data_prep.mapping import (
    FROM_HEADERS,
    SPLIT_WORDS,
    TOGETHER,
)
from data_prep.parts import Note
from data_prep.rejects import (
    IMAGE_UNREADABLE,
    NO_PATIENT,
    reject_frame,
)
from data_prep.source import Options
from data_prep.study import SPLITS
from data_prep.tables import SourceError, one_line
from data_prep.texts import TEXT_COLUMNS
from data_prep.views import NOT_KNOWN, plain, view_of


def meaning_of(cell: str | None, meanings: Mapping[str, str | None]) -> str | None:
    """What `values` says of the cell; the cell itself where it says nothing."""
    if cell is None:
        return None
    if cell in meanings:
        return meanings[cell]
    return meanings.get(" ".join(cell.casefold().split()), cell)


def understand(
    rows: pd.DataFrame, mapping: Mapping[str, Any], path: Path, notes: list[Note]
) -> dict[str, dict[str, int]]:
    """Put the columns of words, ages and times of `rows` into the study table's terms; add what a reader must know to `notes`.

    Returns:
        column → word that is not known → rows that have it.

    Raises:
        SourceError: a column of times or splits is of another form than the mapping says.
    """
    columns, unknown = mapping["columns"], {}
    for name, meaning in (("sex", sexes), ("race", races), ("age", _ages), ("view", _views)):
        if name in columns or ("dicom" in mapping and name in FROM_HEADERS):
            meant = meaning(rows[name])
            if left := unknown_words(rows[name], meant):
                if name == "view":
                    left = {word: number for word, number in left.items() if plain(word) not in NOT_KNOWN}
                    rows["view_word"] = rows[name]
                if left:
                    unknown[name] = left
            rows[name] = meant
        elif name == "view":
            rows[name] = "frontal"
    rows["age"] = pd.to_numeric(rows["age"]).astype(float)
    if "study_datetime" in columns:
        rows["study_datetime"] = datetimes(rows["study_datetime"], mapping, path, notes)
    if "split" in columns:
        split = rows["split"].map(lambda word: SPLIT_WORDS.get(str(word).casefold()), na_action="ignore").astype(object)
        if len(left := rows.loc[split.isna() & rows["split"].notna(), "split"]):
            raise SourceError(
                f"{path}: split {left.iloc[0][:40]!r}; expected {', '.join(SPLITS)} (map other words under values: split)"
            )
        rows["split"] = split
        pairs = rows.loc[split.notna(), ["study_id", "split"]].drop_duplicates()
        if len(twice := pairs.loc[pairs["study_id"].duplicated(), "study_id"]):
            raise SourceError(f"{path}: study {twice.iloc[0]} is in two splits ({twice.nunique()} such)")
    return unknown


def _views(column: pd.Series) -> pd.Series:
    return column.map({word: view_of(word) for word in column.dropna().unique()}).astype(object)


def _ages(column: pd.Series) -> pd.Series:
    return column.map({word: age_of(str(word)) for word in column.dropna().unique()}).astype(object)


def datetimes(column: pd.Series, mapping: Mapping[str, Any], path: Path, notes: list[Note]) -> pd.Series:
    """Date and time of each row, in UTC where a zone is given (one without a zone as it stands), null where there is none.

    Raises:
        SourceError: more than one in a hundred is of another form.
    """
    wanted = mapping.get("datetime_format", "ISO8601")
    try:
        times = pd.to_datetime(column, format=wanted, errors="coerce", utc=True).dt.tz_localize(None)
    except ValueError as error:  # a format that there is not
        raise SourceError(f"{path}: datetime_format {wanted!r}: {one_line(error)}") from error
    bad = times.isna() & column.notna()
    if bad.sum() > 0.01 * column.notna().sum():
        first = column[bad].iloc[0]
        shown = repr(first) if re.fullmatch(r"[\d\W_TZ]{1,40}", first) else f"a text of {len(first)} characters"
        raise SourceError(
            f"{path}: column {mapping['columns']['study_datetime'][0]}: {shown} is not a date-time of the form "
            f"{'ISO 8601' if wanted == 'ISO8601' else wanted}; set datetime_format in the mapping"
        )
    if bad.any():
        notes.append(
            f"{int(bad.sum()):,} rows have a date-time that cannot be read: unknown time, no prior, encounter 1."
        )
    zoned = column.dropna().astype(str).str.contains(r"(?:Z|[+-]\d{2}:?\d{2}|[+-]\d{2})$", regex=True)
    zoned &= column.dropna().astype(str).str.contains(":")
    if zoned.any():
        rest = "" if zoned.all() else f"; {int((~zoned).sum()):,} without one are taken as they stand"
        notes.append(f"{int(zoned.sum()):,} rows give their time with a zone, which is taken in UTC{rest}.")
    return times


def _below(paths: pd.Series, images: Path) -> pd.Series:
    """Absolute paths that lie below the image folder as they are below it; others unchanged."""
    roots = [f"{root.as_posix().rstrip('/')}/" for root in (images, images.absolute(), images.resolve())]

    def relative(path: str) -> str:
        return next((path[len(root) :] for root in roots if path.startswith(root)), path)

    return paths.map({path: relative(path) for path in paths.dropna().unique() if path.startswith("/")}).fillna(paths)


def _with_headers(
    table: pd.DataFrame,
    folder: Path,
    images: Path,
    columns: Mapping[str, Sequence[str]],
    options: Options,
    notes: list[Note],
) -> tuple[pd.DataFrame, list[pd.DataFrame]]:
    """A row for each film below `folder` and the table's rows, which have no film, together; and the rejects of films whose
    header cannot be used. What `columns` names is from the table alone."""
    headers, said = read_headers(folder, options.sample and 4 * options.sample)
    notes += said
    dataset = options.name or "custom"
    below = folder.relative_to(images).as_posix()
    headers["image"] = [path if below == "." else f"{below}/{path}" for path in headers["image"]]
    unreadable = headers["problem"].notna()
    named = headers.assign(study_id=headers["accession"], dataset=dataset, split=None)
    nameless = ~unreadable & (headers["patient_id"].isna() | headers["accession"].isna())
    bad = [
        reject_frame(
            named[unreadable].assign(study_id=headers.loc[unreadable, "image"]),
            IMAGE_UNREADABLE,
            headers.loc[unreadable, "problem"].to_numpy(),
            headers.loc[unreadable, "image"].to_numpy(),
        )
    ]
    lost = named[nameless].assign(study_id=named.loc[nameless, "accession"].fillna(named.loc[nameless, "image"]))
    known = set(named.loc[~unreadable & ~nameless, "accession"])
    lost = lost[~lost["study_id"].isin(known)].drop_duplicates("study_id")
    bad.append(
        reject_frame(lost, NO_PATIENT, "the DICOM header has no PatientID or no study", lost["image"].to_numpy())
    )
    films = named[~unreadable & ~nameless]
    if len(columns["study_id"]) > 1:  # a number within a patient
        films = films.assign(accession=films["patient_id"] + TOGETHER + films["accession"])
    ids = set(table["study_id"])
    by_uid = films["study_uid"].isin(ids).sum() > films["accession"].isin(ids).sum()
    films = films.assign(study_id=films["study_uid" if by_uid else "accession"])
    notes.append(
        f"Reports from the table by {'StudyInstanceUID' if by_uid else 'AccessionNumber'}: "
        f"{len(ids & set(films['study_id'])):,} of {films['study_id'].nunique():,} studies are in it."
    )
    if options.sample:
        table = table[table["study_id"].isin(films["study_id"])]
    films = films.drop(columns=[name for name in FROM_HEADERS if name in columns and name in films])
    films = films.reindex(columns=table.columns)
    films[[*TEXT_COLUMNS, "report_hash"]] = 0
    # A study's table row has its patient from the films, where the table has no column for it.
    patients = films.drop_duplicates("study_id").set_index("study_id")["patient_id"]
    if "patient_id" not in columns:
        table = table.assign(patient_id=table["study_id"].map(patients))
    elif films["patient_id"].isna().all():
        known_patients = table.drop_duplicates("study_id").set_index("study_id")["patient_id"]
        films["patient_id"] = films["study_id"].map(known_patients)
    words = {name: "str" for name in ("study_id", "patient_id", "image", "view", "split", "sex", "race")}
    return pd.concat([films.astype(words), table.astype(words)], ignore_index=True), bad
