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
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from data_prep.demographics import age_of, races, sexes, unknown_words
from data_prep.dicom_headers import read_headers
from data_prep.headings import HeadingRules, HeadingRulesError, parse_free_text, read_rules
from data_prep.priors import none
from data_prep.rejects import (
    IMAGE_UNREADABLE,
    NO_FRONTAL,
    NO_IMAGE,
    NO_PATIENT,
    NOT_IN_SPLIT,
    VIEW_UNKNOWN,
    reject_frame,
)
from data_prep.sections import SECTIONS, with_raw
from data_prep.source import FOUND_COLUMNS, Found, Listing, Options, inside
from data_prep.splits import random_split
from data_prep.study import SPLITS, VIEWS
from data_prep.tables import CSV_SUFFIXES, CsvForm, SourceError, csv_form, is_nothing, iterate_table, one_line
from data_prep.texts import TEXT_COLUMNS, Texts
from data_prep.views import LATERAL, NOT_KNOWN, plain, view_of

REQUIRED = ("study_id", "patient_id", "image")
OPTIONAL = ("report", *SECTIONS, "view", "study_datetime", "sex", "age", "race", "split")
KEYS = (
    "table",
    "dicom",
    "delimiter",
    "encoding",
    "columns",
    "values",
    "datetime_format",
    "shares",
    "title",
    "licence",
    "credentialed",
    "sections",
)
FROM_HEADERS = ("patient_id", "view", "study_datetime", "sex", "age")  # where `columns` does not name them
SAMPLED_ROWS = 20_000
SEVERAL = ("study_id", "patient_id")  # what several columns can make up together
SHARES = (0.8, 0.1, 0.1)
SPLIT_WORDS = {
    **{split: split for split in SPLITS},
    "training": "train",
    "valid": "validation",
    "validate": "validation",
    "val": "validation",
    "testing": "test",
}
# Columns of words, each with what a word of it means.
OF_A_STUDY = ("study_datetime", "sex", "age", "race", "split")  # taken from another row where the key image's has none
_TOGETHER = "\x1f"
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
        frames.append(_with_reports(_raw_rows(table, mapping, path, read), texts, mapping["sections"]))
        read += len(table)
        if options.sample and read >= SAMPLED_ROWS:
            break
    rows = pd.concat(frames, ignore_index=True)
    del frames
    notes: list[str] = []
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
    studies = _filled(key_rows, rows, notes, joined="dicom" in mapping)
    rejects = [*bad, *_without_key_image(rows[~rows["study_id"].isin(studies["study_id"])])]
    if "split" in columns:
        rejects.append(reject_frame(studies[studies["split"].isna()], NOT_IN_SPLIT, "its split cell is blank"))
        studies = studies[studies["split"].notna()].reset_index(drop=True)
    if options.sample:  # whole patients, for their priors
        patients = studies["patient_id"].drop_duplicates()
        some = patients.iloc[:: max(1, len(studies) // options.sample)]
        studies = studies[studies["patient_id"].isin(some)].reset_index(drop=True)
    if "split" not in columns:
        shares = mapping.get("shares", list(SHARES))
        studies["split"] = random_split(studies["patient_id"], tuple(shares), options.seed)
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
    )


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
            [_meaning(cell, meanings) for cell in table[column]] if meanings else table[column].tolist()
            for column in columns[name]
        ]
        cells = [
            None if any(map(is_nothing, row)) else _TOGETHER.join(map(str, row)) for row in zip(*parts, strict=True)
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


def _meaning(cell: str | None, meanings: Mapping[str, str | None]) -> str | None:
    """What `values` says of the cell; the cell itself where it says nothing."""
    if cell is None:
        return None
    if cell in meanings:
        return meanings[cell]
    return meanings.get(" ".join(cell.casefold().split()), cell)


def _with_reports(rows: pd.DataFrame, texts: Texts, rules: HeadingRules) -> pd.DataFrame:
    """`rows` with the reports, cut into sections, moved to `texts`, and a number that tells reports apart."""
    report_columns = ["report", *SECTIONS]
    # A study's images repeat its report: each text is cut once.
    keys = list(zip(*(none(rows[name]) for name in report_columns), strict=True))
    distinct = list(dict.fromkeys(keys))
    cut = texts.add(_sections(dict(zip(report_columns, key, strict=True)), rules) for key in distinct)
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
            f"{path}: study {twice.iloc[0].replace(_TOGETHER, ' ')} has rows of two patients ({twice.nunique()} such): is "
            f"{names[1]} unique only within a patient? Then map study_id: [{', '.join(names)}]"
        )
    for name in SEVERAL:
        if len(columns.get(name, ())) > 1:
            joined = {key: key.replace(_TOGETHER, "_") for key in rows[name].unique()}
            if len(set(joined.values())) < len(joined):
                raise SourceError(f"{path}: columns {', '.join(columns[name])} ({name}) joined by _ are not unique")
            rows[name] = rows[name].map(joined).astype("str")


def understand(
    rows: pd.DataFrame, mapping: Mapping[str, Any], path: Path, notes: list[str]
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


def datetimes(column: pd.Series, mapping: Mapping[str, Any], path: Path, notes: list[str]) -> pd.Series:
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
    notes: list[str],
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
        films = films.assign(accession=films["patient_id"] + _TOGETHER + films["accession"])
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


def _filled(key_rows: pd.DataFrame, rows: pd.DataFrame, notes: list[str], joined: bool) -> pd.DataFrame:
    """The key images' rows; what one lacks (report, time, sex, …) from the study's first row that has it. `joined`: reports
    are in rows of their own."""
    studies = key_rows.reset_index(drop=True)
    rows = rows[rows["study_id"].isin(studies["study_id"])]
    said = rows[(rows["findings_words"] > 0) | (rows["impression_words"] > 0)]
    hashes = said[["study_id", "report_hash"]].drop_duplicates()
    if several := int(
        hashes["study_id"].duplicated().any() and hashes["study_id"][hashes["study_id"].duplicated()].nunique()
    ):
        notes.append(
            f"{several:,} studies have rows with different reports: the key image's row counts, else the first."
        )
    first = said.drop_duplicates("study_id").set_index("study_id")
    empty = (studies["findings_words"] == 0) & (studies["impression_words"] == 0)
    found = empty & studies["study_id"].isin(first.index)
    if found.any():
        own = first.reindex(studies.loc[found, "study_id"])
        for name in TEXT_COLUMNS:
            studies.loc[found, name] = own[name].to_numpy()
        if not joined:
            notes.append(f"{int(found.sum()):,} studies have their report in another row than the key image's.")
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
                yield study.replace(_TOGETHER, "_"), with_line_ends(text)


def read_mapping(path: Path | None, reports: bool = True) -> dict[str, Any]:
    """The checked mapping: `columns` as lists, the words of `values` as text. `reports`: some text must be named.

    Raises:
        SourceError: not given, unreadable, a key that is not known, a value of another kind, or a required column that is not
            named.
    """
    if path is None:
        raise SourceError("custom needs --mapping FILE, a YAML that says which column is what (see --help)")
    try:
        text = path.read_text(encoding="utf-8-sig")
        mapping = yaml.safe_load(text)
        # Columns and words as they are written: 1, 007 and yes are text in the table, too.
        written = yaml.load(text, yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not a readable YAML file ({one_line(error)})") from error
    if not isinstance(mapping, dict):
        raise SourceError(f"{path}: expected keys {', '.join(KEYS)}")
    _known_keys(path, "", mapping, KEYS)
    for key in ("table", "columns"):
        if key not in mapping:
            reports = "; the reports of a folder of DICOM files are in a table" if "dicom" in mapping else ""
            raise SourceError(f"{path}: key {key} is missing{reports}")
    for key in ("table", "dicom", "delimiter", "encoding", "datetime_format", "title", "licence"):
        if key in mapping and not (isinstance(mapping[key], str) and mapping[key]):
            raise SourceError(f"{path}: {key} must be a text, in quotation marks where it is a number or a sign")
    if len(mapping.get("delimiter", ",")) != 1:
        raise SourceError(f'{path}: delimiter must be one character, such as ";" or "\\t"')
    for key in ("columns", "values"):
        if not isinstance(mapping.setdefault(key, {}), dict):
            raise SourceError(f"{path}: {key} must be a mapping")
        mapping[key] = written.get(key, {})
    _known_keys(path, "columns: ", mapping["columns"], (*REQUIRED, *OPTIONAL))
    _known_keys(path, "values: ", mapping["values"], mapping["columns"])
    mapping["columns"] = {name: _column_names(path, name, given) for name, given in mapping["columns"].items()}
    mapping["values"] = {name: _meanings(path, name, given) for name, given in mapping["values"].items()}
    if "dicom" in mapping and "image" in mapping["columns"]:
        raise SourceError(f"{path}: columns: image: the films are those of the folder dicom; leave one of the two out")
    if missing := [n for n in (REQUIRED[:1] if "dicom" in mapping else REQUIRED) if n not in mapping["columns"]]:
        raise SourceError(f"{path}: columns: {', '.join(missing)} must be named")
    if reports and not {"report", "findings", "impression"} & set(mapping["columns"]):
        raise SourceError(f"{path}: columns: name report, or findings or impression")
    shares = mapping.get("shares", list(SHARES))
    if not (
        isinstance(shares, list)
        and len(shares) == 3
        and all(isinstance(s, (int, float)) and not isinstance(s, bool) and 0 <= s < float("inf") for s in shares)
        and sum(shares) > 0
    ):
        raise SourceError(
            f"{path}: shares must be three numbers for train, validation and test, such as [0.8, 0.1, 0.1]"
        )
    if not isinstance(mapping.get("credentialed", True), bool):
        raise SourceError(f"{path}: credentialed must be true or false")
    try:
        mapping["sections"] = read_rules(mapping.get("sections", {}))
    except HeadingRulesError as error:
        raise SourceError(f"{path}: {error}") from error
    return mapping


def _column_names(path: Path, name: str, given: Any) -> list[str]:
    names = given if isinstance(given, list) and name in SEVERAL else [given]
    if not names or not all(isinstance(column, str) and column.strip() for column in names):
        several = ", or a list of several that make it up together" if name in SEVERAL else ""
        raise SourceError(f"{path}: columns: {name} must name a column{several}")
    return [column.strip() for column in names]


def _meanings(path: Path, name: str, given: Any) -> dict[str, str | None]:
    """The table's words, as they are written and in small letters, and what each means (None: nothing)."""
    if not isinstance(given, dict) or not all(isinstance(meaning, str) for meaning in given.values()):
        raise SourceError(f"{path}: values: {name} must be a mapping from the table's words to what they mean")
    known: dict[str, Any] = {"view": view_of, "split": SPLIT_WORDS.get, "sex": {"F": "F", "M": "M"}.get}
    meanings: dict[str, str | None] = {}
    for word, meaning in given.items():
        if is_nothing(meaning) or meaning == "~":
            meanings[word] = None
        elif name in known and known[name](meaning) is None:
            expected = {"view": "AP, PA, frontal or lateral", "split": ", ".join(SPLITS), "sex": "F or M"}[name]
            raise SourceError(f"{path}: values: {name}: {word}: {meaning!r}; expected {expected}, or null")
        else:
            meanings[word] = meaning
    lower = {" ".join(word.casefold().split()).removesuffix(".0"): meaning for word, meaning in meanings.items()}
    return lower | meanings


def _known_keys(path: Path, where: str, given: Mapping[str, Any], known: Any) -> None:
    if unknown := [str(key) for key in given if key not in known]:
        raise SourceError(f"{path}: {where}unknown key {', '.join(unknown)}; known are {', '.join(known)}")


def table_form(path: Path, mapping: Mapping[str, Any]) -> CsvForm | None:
    """How the table is written, where it is a CSV or a JSONL whose encoding is given."""
    columns = [name for names in mapping["columns"].values() for name in names]
    if path.name.endswith(CSV_SUFFIXES):
        return csv_form(path, columns, mapping.get("delimiter"), mapping.get("encoding"))
    return CsvForm(encoding=mapping["encoding"]) if "encoding" in mapping else None


def _dicom_folder(images: Path, mapping: Mapping[str, Any]) -> Path:
    relative = inside(mapping["dicom"]) if mapping["dicom"] not in (".", "./") else "."
    if relative is None or not (folder := images / relative).is_dir():
        raise SourceError(f"{images}: dicom {mapping['dicom']!r} of the mapping is not a folder below it")
    return folder


def _table_path(root: Path, mapping: Mapping[str, Any]) -> Path:
    relative = inside(mapping["table"])
    if relative is None or not (path := root / relative).is_file():
        raise SourceError(f"{root}: table {mapping['table']!r} of the mapping is not a file below it")
    return path


def iterate_rows(root: Path, mapping: Mapping[str, Any], names: Sequence[str]) -> Iterator[pd.DataFrame]:
    """The raw text of `names` (study table's names that the mapping has) of each row, some thousand rows at a time."""
    path = _table_path(root, mapping)
    some = {**mapping, "columns": {name: mapping["columns"][name] for name in names}}
    columns = list(dict.fromkeys(column for columns in some["columns"].values() for column in columns))
    before = 0
    for table in iterate_table(path, columns, table_form(path, some)):
        yield _raw_rows(table, some, path, before)[list(names)]
        before += len(table)
