"""An institution's own studies: a CSV, JSONL or Parquet table and a YAML that says which column is what.

    python -m data_prep custom --source DIR --mapping mapping.yaml --name our_hospital --out data/our_hospital

mapping.yaml:

    table: studies.csv             # below --source: .csv, .tsv, .txt (each also .gz), .jsonl or .parquet
    delimiter: ";"                 # of a CSV; without it, the one that the header shows
    encoding: latin-1              # of a CSV or JSONL; without it, UTF-8, UTF-16 or Windows' Latin 1 as the bytes show
    columns:                       # study table's name: the table's column
      study_id: accession          # required; where numbers repeat from patient to patient, both: [mrn, visit]
      patient_id: mrn              # required
      image: file                  # required; below --source or --images; PNG, JPEG or DICOM
      report: text                 # free text, split into sections; or give the sections themselves:
      # indication, comparison, findings, impression: …
      view: projection             # without it every image counts as frontal
      study_datetime: taken        # without it no priors; a time with a zone is taken in UTC
      sex: gender
      age: age                     # years, or DICOM's form 045Y
      race: race
      split: fold                  # without it the studies are split here, by patient
    values:                        # what the table's words mean, where they are not known
      view: {Thorax liegend: AP, Zielaufnahme: lateral}
      sex: {1: M, 2: F}
      split: {dev: validation}
    datetime_format: "%d.%m.%Y %H:%M"   # default: ISO 8601
    shares: [0.8, 0.1, 0.1]        # train, validation, test, where there is no split column
    title: Chest radiographs of our hospital
    licence: internal
    credentialed: true             # default: reports may not be sent to third parties
    sections:                      # how free text is cut (headings.py); all keys: data_prep/heading_rules.yaml
      headings: {findings: [Befund], impression: [Beurteilung]}   # added to those that are known
      ignored: [report]            # known ones that are no headings here
      joint: findings              # or impression: what takes the text under FINDINGS AND IMPRESSION
      addenda: leave_out           # or append

    python -m data_prep sections --source DIR --mapping mapping.yaml --show 20   # reports as they are cut, before training

A folder of DICOM files needs no table of images. Their headers give study (accession number), patient, date and time, view, sex
and age; a table gives the reports, and whatever else `columns` names, by the study's number:

    dicom: films                   # below --source or --images; "." for all of it
    table: reports.csv
    columns: {study_id: accession, report: text}

Several rows of one study are its images; the first frontal one by row order is the key image. The report is that row's; where
it has none, that of the study's first row that has one, and so for date, sex, age, race and split. Words for views, sex and
race that are not known count as unknown; the data card lists them with how often they occur, to be named under `values`.
Cells that say nan, None, N/A, NULL and the like are blank. Numbers are text: 7, 7.0 and "7" are one id, "07" is another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data_prep.custom_columns import _below, _with_headers, meaning_of, understand
from data_prep.headings import HeadingRules, parse_free_text
from data_prep.mapping import (
    OPTIONAL,
    REQUIRED,
    SEVERAL,
    SHARES,
    TOGETHER,
    _dicom_folder,
    _table_path,
    read_mapping,
    table_form,
)
from data_prep.parts import Counted, Note
from data_prep.priors import none
from data_prep.rejects import (
    NO_FRONTAL,
    NO_IMAGE,
    NOT_IN_SPLIT,
    VIEW_UNKNOWN,
    reject_frame,
)
from data_prep.sections import SECTIONS, with_raw
from data_prep.source import FOUND_COLUMNS, Found, Listing, Options
from data_prep.splits import random_split
from data_prep.study import VIEWS
from data_prep.tables import SourceError, is_nothing, iterate_table
from data_prep.texts import TEXT_COLUMNS, Texts
from data_prep.views import LATERAL

SAMPLED_ROWS = 20_000
# Columns of words, each with what a word of it means.
OF_A_STUDY = ("study_datetime", "sex", "age", "race", "split")  # taken from another row where the key image's has none
# Line ends as exports write them inside a text: HTML's, HL7's, Excel's, and (where the text has no real one) escaped ones.
_LINE_END = re.compile(
    r"\r\n?|[\x0b\x0c\x85\u2028\u2029]|<\s*/?\s*(?:br|p|div)\s*/?\s*>|\\\.br\\|_x000D_\n?|&#1[03];", re.I
)
_ESCAPED_LINE_END = re.compile(r"\\r\\n|\\n|\\r")


def inputs(root: Path, options: Options) -> list[Path | Listing]:
    """The table, and the listing of a folder of DICOM files (the mapping is fingerprinted as an option)."""
    mapping = read_mapping(options.mapping)
    films = [Listing(_dicom_folder(options.images or root, mapping))] if "dicom" in mapping else []
    return [_table_path(root, mapping), *films]


def read(root: Path, options: Options, reports: bool = True) -> Found:
    """All studies of the table.

    Args:
        reports: the mapping must name reports or sections; else it may (films that are still to be read).

    Raises:
        SourceError: the mapping or the table is not what it should be.
    """
    mapping = read_mapping(options.mapping, reports)
    path = _table_path(root, mapping)
    columns: dict[str, list[str]] = mapping["columns"]
    form = table_form(path, mapping)
    images = options.images or root
    texts, frames, read = Texts(), [], 0
    for table in iterate_table(path, list(dict.fromkeys(name for names in columns.values() for name in names)), form):
        frames.append(_with_reports(_raw_rows(table, mapping, path, read), texts, mapping["sections"], options))
        read += len(table)
        if options.sample and read >= SAMPLED_ROWS:
            break
    rows = pd.concat(frames, ignore_index=True)
    del frames
    notes: list[Note] = []
    bad: list[pd.DataFrame] = []
    if "dicom" in mapping:
        rows, bad = _with_headers(rows, _dicom_folder(images, mapping), images, columns, options, notes)
    rows["dataset"] = options.name or "custom"
    _one_patient_a_study(rows, path, columns)
    words = understand(rows, mapping, path, notes)
    rows["image"] = _below(rows["image"], images)
    if form and form.guessed:
        notes.append(f"{path.name}: {form.described()} ({' and '.join(form.guessed)} found in the file itself).")

    usable = rows["view"].isin(VIEWS) & rows["image"].notna()
    key_rows = rows[usable & ~rows["study_id"].where(usable).duplicated()]
    rejects = [*bad, *_without_key_image(rows[~rows["study_id"].isin(key_rows["study_id"])])]
    index = None if options.part is None else _index(key_rows, rows)
    studies = _filled(options.own(key_rows), options.own(rows), notes, joined="dicom" in mapping)
    if "split" in columns:
        rejects.append(reject_frame(studies[studies["split"].isna()], NOT_IN_SPLIT, "its split cell is blank"))
        studies = studies[studies["split"].notna()].reset_index(drop=True)
    if options.sample:  # whole patients, for their priors
        patients = studies["patient_id"].drop_duplicates()
        some = patients.iloc[:: max(1, len(studies) // options.sample)]
        studies = studies[studies["patient_id"].isin(some)].reset_index(drop=True)
    if "split" not in columns:
        shares = mapping.get("shares", list(SHARES))
        patients = (studies if index is None else index)["patient_id"]
        split_of = dict(zip(patients, random_split(patients, tuple(shares), options.seed), strict=True))
        studies["split"] = studies["patient_id"].map(split_of).astype(object)
        if index is not None:
            index["split"] = index["patient_id"].map(split_of)
        notes.append(f"Split here by patient, shares {shares}, seed {options.seed}.")
    dated = "study_datetime" in columns or "dicom" in mapping
    if not dated:
        notes.append("No date-times: no priors, every encounter is 1.")
    studies["order"] = None
    return Found(
        studies.rename(columns={"image": "image_source"})[list(FOUND_COLUMNS)],
        texts,
        images,
        str(mapping.get("title", options.name or "custom")),
        str(mapping.get("licence", "not stated")),
        credentialed=mapping.get("credentialed", True),
        rejects=pd.concat(rejects, ignore_index=True),
        notes=notes,
        unknown_words=words,
        priors=dated,
        index=index,
    )


def _index(key_rows: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Patient, split and key image of each study of the source (`Found.index`)."""
    split = rows[rows["split"].notna()].drop_duplicates("study_id").set_index("study_id")["split"]
    index = key_rows[["patient_id", "image"]].rename(columns={"image": "image_source"})
    return index.assign(split=key_rows["study_id"].map(split)).reset_index(drop=True)


def _raw_rows(table: pd.DataFrame, mapping: Mapping[str, Any], path: Path, before: int) -> pd.DataFrame:
    """Some rows of the table, after `before` others, under the study table's names: text, or None where a cell is blank or
    a word for nothing and `values` does not say what it means."""
    columns, frame = mapping["columns"], pd.DataFrame(index=table.index)
    for name in (*REQUIRED, *OPTIONAL):
        if name not in columns:
            frame[name] = None
            continue
        meanings = mapping["values"].get(name, {})
        parts = [
            [meaning_of(cell, meanings) for cell in table[column]] if meanings else table[column].tolist()
            for column in columns[name]
        ]
        cells = [
            None if any(map(_says_nothing, row)) else TOGETHER.join(map(str, row)) for row in zip(*parts, strict=True)
        ]
        if name in SEVERAL:
            if None in cells and not (name == "patient_id" and "dicom" in mapping):
                row = before + cells.index(None) + 1
                raise SourceError(
                    f"{path}: column {' or '.join(columns[name])} ({name}) is empty in row {row}, or says nothing; every row "
                    "needs one: take the row out or fill it"
                )
            if damaged := next((cell for cell in cells if cell and re.fullmatch(r"\d(?:[.,]\d+)?E\+\d+", cell)), None):
                raise SourceError(
                    f"{path}: column {' or '.join(columns[name])} ({name}) has {damaged!r}: a spreadsheet has cut its last "
                    "digits; export the numbers as text"
                )
        frame[name] = pd.Series(cells, index=table.index, dtype=object)
    return frame


def _says_nothing(cell: object) -> bool:
    """Whether a cell is blank or a word for nothing, be it with a full stop."""
    return is_nothing(cell) or (isinstance(cell, str) and is_nothing(cell.strip().rstrip(".")))


def _with_reports(rows: pd.DataFrame, texts: Texts, rules: HeadingRules, options: Options) -> pd.DataFrame:
    """`rows` with the reports, cut into sections, moved to `texts`, and a number that tells reports apart. Of other parts'
    patients none is cut."""
    report_columns = ["report", *SECTIONS]
    # A study's images repeat its report: each text is cut once.
    keys = list(zip(*(none(rows[name]) for name in report_columns), strict=True))
    distinct = list(dict.fromkeys(keys))
    mine = set(distinct)
    if options.part is not None:
        own = [patient is None or options.mine(patient.replace(TOGETHER, "_")) for patient in none(rows["patient_id"])]
        mine = set(compress(keys, own))
    cut = texts.add(
        _sections(dict(zip(report_columns, key, strict=True)), rules) if key in mine else None for key in distinct
    )
    places = {key: number for number, key in enumerate(distinct)}
    at = np.array([places[key] for key in keys], dtype=np.int64)
    cut["report_hash"] = [hash(key) for key in distinct]
    words = {name: "str" for name in ("study_id", "patient_id", "image", "view", "split", "sex", "race")}
    own = cut.iloc[at].reset_index(drop=True)
    return rows.drop(columns=report_columns).reset_index(drop=True).astype(words).join(own)


def _sections(report: Mapping[str, str | None], rules: HeadingRules) -> dict[str, str | None]:
    """A report's sections; a section's own column goes before the free text."""
    free = parse_free_text(with_line_ends(report["report"]), rules) if report["report"] else {}
    own = with_raw({name: with_line_ends(report[name]) for name in SECTIONS})
    return {**free, **{name: text for name, text in own.items() if text}}


def with_line_ends(text: str | None) -> str | None:
    """The text with line ends of every kind as a line feed; escaped ones (a backslash and an n) only where it has no other."""
    if text is None:
        return None
    text = _LINE_END.sub("\n", text)
    return text if "\n" in text else _ESCAPED_LINE_END.sub("\n", text)


def _one_patient_a_study(rows: pd.DataFrame, path: Path, columns: Mapping[str, Sequence[str]]) -> None:
    """Raise `SourceError` where a study number has rows of two patients; make each number of several columns one word."""
    pairs = rows[["study_id", "patient_id"]].dropna().drop_duplicates()
    twice = pairs.loc[pairs["study_id"].duplicated(), "study_id"]
    if len(twice):
        names = [*columns.get("patient_id", ["PatientID"])[:1], columns["study_id"][-1]]
        raise SourceError(
            f"{path}: study {twice.iloc[0].replace(TOGETHER, ' ')} has rows of two patients ({twice.nunique()} such): is "
            f"{names[1]} unique only within a patient? Then map study_id: [{', '.join(names)}]"
        )
    for name in SEVERAL:
        if len(columns.get(name, ())) > 1:
            joined = {key: key.replace(TOGETHER, "_") for key in rows[name].unique()}
            if len(set(joined.values())) < len(joined):
                raise SourceError(f"{path}: columns {', '.join(columns[name])} ({name}) joined by _ are not unique")
            rows[name] = rows[name].map(joined).astype("str")


def _filled(key_rows: pd.DataFrame, rows: pd.DataFrame, notes: list[Note], joined: bool) -> pd.DataFrame:
    """The key images' rows; what one lacks (report, time, sex, …) from the study's first row that has it. `joined`: reports
    are in rows of their own."""
    studies = key_rows.reset_index(drop=True)
    rows = rows[rows["study_id"].isin(studies["study_id"])]
    said = rows[(rows["findings_words"] > 0) | (rows["impression_words"] > 0)]
    hashes = said[["study_id", "report_hash"]].drop_duplicates()
    several = int(hashes["study_id"][hashes["study_id"].duplicated()].nunique())
    notes.append(
        Counted(
            "{0:,} studies have rows with different reports: the key image's row counts, else the first.", (several,)
        )
    )
    first = said.drop_duplicates("study_id").set_index("study_id")
    empty = (studies["findings_words"] == 0) & (studies["impression_words"] == 0)
    found = empty & studies["study_id"].isin(first.index)
    if found.any():
        own = first.reindex(studies.loc[found, "study_id"])
        for name in TEXT_COLUMNS:
            studies.loc[found, name] = own[name].to_numpy()
    if not joined:
        elsewhere = int(found.sum())
        notes.append(Counted("{0:,} studies have their report in another row than the key image's.", (elsewhere,)))
    for name in OF_A_STUDY:
        if studies[name].isna().any():
            known = rows[rows[name].notna()].drop_duplicates("study_id").set_index("study_id")[name]
            studies[name] = studies[name].where(studies[name].notna(), studies["study_id"].map(known))
    return studies


def _without_key_image(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """Rejects of the studies none of whose rows can be the key image."""
    grouped = rows.assign(blank=rows["image"].isna(), lateral=rows["view"].eq(LATERAL)).groupby("study_id")
    first = rows.drop_duplicates("study_id").set_index("study_id", drop=False)
    reasons = pd.Series(VIEW_UNKNOWN, index=first.index, dtype=object)
    reasons[grouped["lateral"].all().reindex(first.index)] = NO_FRONTAL
    reasons[grouped["blank"].all().reindex(first.index)] = NO_IMAGE
    details = pd.Series(None, index=first.index, dtype=object)
    if "view_word" in rows:
        words = rows[rows["view"].isna() & rows["view_word"].notna()].groupby("study_id")["view_word"]
        details = words.agg(lambda column: "not known: " + ", ".join(column.unique()[:5])).reindex(first.index)
    return [
        reject_frame(first[reasons == r], r, none(details[reasons == r]) if r == VIEW_UNKNOWN else None)
        for r in (VIEW_UNKNOWN, NO_FRONTAL, NO_IMAGE)
    ]


def iterate_reports(root: Path, mapping: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Study and free text of each row of the table that has one, a study's repeated text once.

    Raises:
        SourceError: the mapping names no column of free text, or the table is not what it should be.
    """
    if "report" not in mapping["columns"]:
        raise SourceError("the mapping names no report column: its sections are the table's own and are not cut")
    seen: set[int] = set()
    for rows in iterate_rows(root, mapping, ("study_id", "report")):
        for study, text in zip(rows["study_id"], rows["report"], strict=True):
            if text and (key := hash((study, text))) not in seen:
                seen.add(key)
                yield study.replace(TOGETHER, "_"), with_line_ends(text)


def iterate_rows(root: Path, mapping: Mapping[str, Any], names: Sequence[str]) -> Iterator[pd.DataFrame]:
    """The raw text of `names` (study table's names that the mapping has) of each row, some thousand rows at a time."""
    path = _table_path(root, mapping)
    some = {**mapping, "columns": {name: mapping["columns"][name] for name in names}}
    columns = list(dict.fromkeys(column for columns in some["columns"].values() for column in columns))
    before = 0
    for table in iterate_table(path, columns, table_form(path, some)):
        yield _raw_rows(table, some, path, before)[list(names)]
        before += len(table)
