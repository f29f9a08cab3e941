"""The mapping of a `custom` source: its YAML, read and checked key by key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from data_prep.headings import HeadingRulesError, read_rules
from data_prep.sections import SECTIONS
from data_prep.source import inside
from data_prep.study import SPLITS
from data_prep.tables import CSV_SUFFIXES, CsvForm, SourceError, csv_form, is_nothing, one_line
from data_prep.views import view_of

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
SEVERAL = ("study_id", "patient_id")  # what several columns can make up together
SPLIT_WORDS = {
    **{split: split for split in SPLITS},
    "training": "train",
    "valid": "validation",
    "validate": "validation",
    "val": "validation",
    "testing": "test",
}

TOGETHER = "\x1f"

SHARES = (0.8, 0.1, 0.1)


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
