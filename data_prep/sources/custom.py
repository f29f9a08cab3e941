"""A private institution's studies: a CSV, JSONL or Parquet table and a YAML that says which column is what.

    python -m data_prep custom --source DIR --mapping mapping.yaml --name our_hospital --out data/our_hospital

mapping.yaml:

    table: studies.csv             # below --source: .csv, .csv.gz, .jsonl or .parquet
    columns:                       # study table's name: the table's column
      study_id: accession          # required
      patient_id: mrn              # required
      image: file                  # required; below --source or --images; PNG, JPEG or DICOM
      report: text                 # free text, split into sections; or give the sections themselves:
      # indication, comparison, findings, impression: …
      view: projection             # without it every image counts as frontal
      study_datetime: taken        # without it no priors
      sex: gender
      age: age                     # years, or DICOM's form 045Y
      race: race
      split: fold                  # without it the studies are split here, by patient
    values:                        # what the table's words mean, where they are not the study table's
      view: {Thorax PA: PA, Thorax AP: AP, Thorax lateral: lateral}
      sex: {female: F, male: M}
      split: {dev: validation}
    datetime_format: "%d.%m.%Y %H:%M"   # default: ISO 8601
    shares: [0.8, 0.1, 0.1]        # train, validation, test, where there is no split column
    title: Chest radiographs of our hospital
    licence: internal
    credentialed: true             # default: reports may not be sent to third parties

Several rows of one study are its images; the first frontal one by row order is the key image. Views other than AP, PA and
frontal that `values` does not name count as lateral only if they are `lateral`; any other word is an unknown view.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from data_prep.demographics import age_of, races, sexes
from data_prep.priors import none
from data_prep.rejects import NO_FRONTAL, NO_IMAGE, VIEW_UNKNOWN, reject_frame
from data_prep.sections import SECTIONS, parse_report, single_spaced
from data_prep.source import FOUND_COLUMNS, Found, Options, SourceError, inside, iterate_csv, one_line
from data_prep.splits import random_split
from data_prep.study import SPLITS, VIEWS
from data_prep.texts import BATCH, Texts

REQUIRED = ("study_id", "patient_id", "image")
OPTIONAL = ("report", *SECTIONS, "view", "study_datetime", "sex", "age", "race", "split")
KEYS = ("table", "columns", "values", "datetime_format", "shares", "title", "licence", "credentialed")


def inputs(root: Path, options: Options) -> list[Path]:
    """The table (the mapping is fingerprinted as an option)."""
    return [_table_path(root, read_mapping(options.mapping))]


def read(root: Path, options: Options) -> Found:
    """All studies of the table.

    Raises:
        SourceError: the mapping or the table is not what it should be.
    """
    mapping = read_mapping(options.mapping)
    path = _table_path(root, mapping)
    columns: dict[str, str] = mapping["columns"]
    texts, frames, read = Texts(), [], 0
    for table in _iterate_table(path, list(dict.fromkeys(columns.values()))):
        frames.append(_images(table, mapping, path, read, texts))
        read += len(table)
    frame = pd.concat(frames, ignore_index=True)
    del frames
    frame["dataset"] = options.name or "custom"

    no_image = frame["image"].isna()
    usable = frame["view"].isin(VIEWS) & ~no_image
    studies = frame[usable & ~frame["study_id"].where(usable).duplicated()].reset_index(drop=True)
    others = frame[~frame["study_id"].isin(studies["study_id"])]
    per_study = others.assign(blank=no_image, lateral=others["view"].eq("lateral")).groupby("study_id")
    first = others.drop_duplicates("study_id").set_index("study_id", drop=False)
    reasons = pd.Series(VIEW_UNKNOWN, index=first.index, dtype=object)
    reasons[per_study["lateral"].all().reindex(first.index)] = NO_FRONTAL
    reasons[per_study["blank"].all().reindex(first.index)] = NO_IMAGE
    first["split"] = first["split"].where(first["split"].isin(SPLITS), None)
    rejects = [reject_frame(first[reasons == reason], reason) for reason in reasons.unique()]
    if options.sample:
        studies = studies.iloc[:: max(1, len(studies) // options.sample)].reset_index(drop=True)

    del frame, others
    studies = studies.rename(columns={"image": "image_source"})
    notes = []
    if "split" not in columns:
        shares = mapping.get("shares", [0.8, 0.1, 0.1])
        studies["split"] = random_split(studies["patient_id"], tuple(shares), options.seed)
        notes.append(f"Split here by patient, shares {shares}, seed {options.seed}.")
    elif (unknown := studies[~studies["split"].isin(SPLITS)]).shape[0]:
        raise SourceError(
            f"{path}: split {unknown['split'].iloc[0]!r}; expected {', '.join(SPLITS)} (map other words under values: split)"
        )
    if "study_datetime" not in columns:
        notes.append("No date-times: no priors, every encounter is 1.")
    studies["order"] = None
    found = Found(
        studies[list(FOUND_COLUMNS)],
        texts,
        options.images or root,
        str(mapping.get("title", options.name or "custom")),
        str(mapping.get("licence", "not stated")),
        credentialed=mapping.get("credentialed", True),
        notes=notes,
        priors="study_datetime" in columns,
    )
    if rejects:
        found.rejects = pd.concat(rejects, ignore_index=True)
    return found


def _images(table: pd.DataFrame, mapping: Mapping[str, Any], path: Path, before: int, texts: Texts) -> pd.DataFrame:
    """Some rows of the table, after `before` others, in the study table's terms; the reports go to `texts`."""
    columns: dict[str, str] = mapping["columns"]
    frame = pd.DataFrame({name: table[column] for name, column in columns.items()}, dtype=object)
    for name in ("study_id", "patient_id"):
        if frame[name].isna().any():
            row = before + int(frame[name].isna().to_numpy().argmax()) + 1
            raise SourceError(f"{path}: column {columns[name]} ({name}) is empty in row {row}")
    for name, words in mapping.get("values", {}).items():
        frame[name] = frame[name].map(lambda value, words=words: words.get(value, value))
    for name in OPTIONAL:
        if name not in frame:
            frame[name] = None
    if "view" not in columns:
        frame["view"] = "frontal"
    if "study_datetime" in columns:
        frame["study_datetime"] = _datetimes(frame["study_datetime"], mapping, columns, path)
    frame["sex"] = sexes(frame["sex"])
    frame["age"] = pd.Series([age_of(str(age)) if age is not None else None for age in none(frame["age"])], dtype=float)
    frame["race"] = races(frame["race"].astype("string"))
    own = {name: [single_spaced(text) for text in none(frame[name])] for name in SECTIONS}
    frontal = frame["view"].isin(VIEWS)
    parsed = (
        {} if not shown else parse_report(text or "")
        for shown, text in zip(frontal, none(frame["report"]), strict=True)
    )
    reports = [
        {name: own[name][row] or free.get(name) for name in SECTIONS} for row, free in enumerate(parsed)
    ]  # a section's own column goes before the free text
    words = {name: "str" for name in ("study_id", "patient_id", "image", "view", "split", "sex", "race")}
    return frame.drop(columns=[*SECTIONS, "report"]).astype(words).join(texts.add(reports))


def read_mapping(path: Path | None) -> dict[str, Any]:
    """The checked mapping.

    Raises:
        SourceError: not given, unreadable, a key that is not known, or a required column that is not named.
    """
    if path is None:
        raise SourceError("custom needs --mapping FILE, a YAML that says which column is what (see --help)")
    try:
        mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SourceError(f"{path}: not a readable YAML file ({one_line(error)})") from error
    if not isinstance(mapping, dict):
        raise SourceError(f"{path}: expected keys {', '.join(KEYS)}")
    _known_keys(path, "", mapping, KEYS)
    for key in ("table", "columns"):
        if key not in mapping:
            raise SourceError(f"{path}: key {key} is missing")
    for key in ("columns", "values"):
        if not isinstance(mapping.setdefault(key, {}), dict):
            raise SourceError(f"{path}: {key} must be a mapping")
    columns, values = mapping["columns"], mapping["values"]
    _known_keys(path, "columns: ", columns, (*REQUIRED, *OPTIONAL))
    _known_keys(path, "values: ", values, columns)
    if missing := [name for name in REQUIRED if name not in columns]:
        raise SourceError(f"{path}: columns: {', '.join(missing)} must be named")
    if not {"report", "findings", "impression"} & set(columns):
        raise SourceError(f"{path}: columns: name report, or findings or impression")
    shares = mapping.get("shares", [0.8, 0.1, 0.1])
    if not (
        isinstance(shares, list)
        and len(shares) == 3
        and all(isinstance(s, (int, float)) and s >= 0 for s in shares)
        and sum(shares) > 0
    ):
        raise SourceError(
            f"{path}: shares must be three numbers for train, validation and test, such as [0.8, 0.1, 0.1]"
        )
    return mapping


def _known_keys(path: Path, where: str, given: Mapping[str, Any], known: Any) -> None:
    if unknown := [str(key) for key in given if key not in known]:
        raise SourceError(f"{path}: {where}unknown key {', '.join(unknown)}; known are {', '.join(known)}")


def _table_path(root: Path, mapping: Mapping[str, Any]) -> Path:
    relative = inside(str(mapping["table"]))
    if relative is None or not (path := root / relative).is_file():
        raise SourceError(f"{root}: table {mapping['table']!r} of the mapping is not a file below it")
    return path


def _iterate_table(path: Path, columns: list[str]) -> Iterator[pd.DataFrame]:
    """`columns` of the table, some thousand rows at a time, text without white space at its ends, None for null."""
    if path.suffix == ".parquet":
        tables = _iterate_parquet(path, columns)
    elif path.suffix == ".jsonl":
        tables = _iterate_jsonl(path, columns)
    elif path.name.endswith((".csv", ".csv.gz")):
        tables = iterate_csv(path, columns)
    else:
        raise SourceError(f"{path}: expected a .csv, .csv.gz, .jsonl or .parquet table")
    for table in tables:
        table = table.astype(object).where(table.notna(), None)
        yield table.map(lambda value: value.strip() or None if isinstance(value, str) else value)


def _iterate_parquet(path: Path, columns: list[str]) -> Iterator[pd.DataFrame]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if missing := [column for column in columns if column not in names]:
                raise _missing(path, missing, names)
            yield file.schema_arrow.empty_table().select(columns).to_pandas()
            for batch in file.iter_batches(BATCH, columns=columns):
                yield batch.to_pandas()
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path}: not a readable Parquet file ({one_line(error)})") from error


def _iterate_jsonl(path: Path, columns: list[str]) -> Iterator[pd.DataFrame]:
    names: dict[str, None] = {}  # of all rows: one row need not have every column
    rows: list[list] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise SourceError(f"{path}: line {number} is not JSON ({one_line(error)})") from error
                if not isinstance(row, dict):
                    raise SourceError(f"{path}: line {number} is not a JSON object")
                names.update(dict.fromkeys(row))
                rows.append([row.get(column) for column in columns])
                if len(rows) == BATCH:
                    yield pd.DataFrame(rows, columns=columns, dtype=object)
                    rows = []
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: not a readable JSONL file ({one_line(error)})") from error
    yield pd.DataFrame(rows, columns=columns, dtype=object)
    if missing := [column for column in columns if column not in names]:
        raise _missing(path, missing, list(names))


def _missing(path: Path, missing: list[str], names: list[str]) -> SourceError:
    return SourceError(f"{path}: column(s) {', '.join(missing)} of the mapping missing; it has {', '.join(names[:30])}")


def _datetimes(column: pd.Series, mapping: Mapping[str, Any], columns: Mapping[str, str], path: Path) -> pd.Series:
    times = pd.to_datetime(column, format=mapping.get("datetime_format", "ISO8601"), errors="coerce")
    if (bad := times.isna() & column.notna()).any():
        raise SourceError(
            f"{path}: column {columns['study_datetime']}: {column[bad].iloc[0]!r} is not a date-time of the form "
            f"{mapping.get('datetime_format', 'ISO 8601')}; set datetime_format in the mapping"
        )
    return times
