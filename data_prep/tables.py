"""Tables as they come, read strictly and as text: CSV of any delimiter and encoding, JSONL and Parquet.

Each row of a CSV is held against the lines that it takes: a row with more or fewer cells than the header, a quotation mark that
is never closed and a quoted cell that has swallowed other rows are errors that name the line. What stands in a line is never
part of a message: it is a patient's.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from foundation.errors import OneLineError

ROWS = 2048  # rows read at a time
LONGEST_CELL = 1 << 26  # characters; a longer one is a file that was cut or is something else
DELIMITERS = (",", ";", "\t", "|")
CSV_SUFFIXES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
EXPECTED = ".csv, .csv.gz, .tsv, .txt, .jsonl or .parquet"
# What programs write where there is nothing, as a cell of its own.
NOTHING = frozenset(
    [
        *["", "nan", "none", "null", "<na>", "n/a", "#n/a", "na", "nat", "nil", "-", "--", ".", "?"],
        *[
            "\\n",
            "<null>",
            "(null)",
            "[null]",
            "#null!",
            "<none>",
            "(none)",
            "undefined",
        ],  # of databases and spreadsheets
    ]
)
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89abAB]")
_LARGEST_EXACT = 2**53  # above it a floating number is no longer each integer

csv.field_size_limit(LONGEST_CELL)


class SourceError(OneLineError):
    """A source is not what its layout says. The message is one line: which file, what was expected, how to mend it."""


def one_line(error: object) -> str:
    """An error's text on one line."""
    return " ".join(str(error).split())


@dataclass(frozen=True)
class CsvForm:
    """How a CSV file is written. `guessed` names what was not given but found in the file."""

    delimiter: str = ","
    encoding: str = "utf-8-sig"
    skip_space: bool = False
    skip_lines: int = 0
    guessed: tuple[str, ...] = ()

    def described(self) -> str:
        """For the data card."""
        names = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "bar"}
        return f"encoding {self.encoding}, delimiter {names.get(self.delimiter, self.delimiter)}"


def read_csv(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> pd.DataFrame:
    """`columns` and those of `optional` that exist, all as text (null where blank), of a CSV file (.gz or not).

    Raises:
        SourceError: unreadable, or a column is missing.
    """
    return pd.concat(iterate_csv(path, columns, optional), ignore_index=True)


def iterate_csv(
    path: Path, columns: Sequence[str], optional: Sequence[str] = (), form: CsvForm | None = None
) -> Iterator[pd.DataFrame]:
    """As `read_csv`, some thousand rows at a time; at least one frame, which may have no row. `form`: commas and UTF-8 unless
    given."""
    form = form or CsvForm()
    try:
        with _open_text(path, form.encoding) as file:
            rows = _csv_rows(file, path, form)
            header = next(rows)
            if missing := [column for column in columns if column not in header]:
                raise SourceError(
                    f"{path}: column(s) {', '.join(missing)} missing; it has {', '.join(header[:30])}. "
                    "Was the file edited or is it of another version?"
                )
            wanted = [*columns, *(column for column in optional if column in header)]
            at = [header.index(column) for column in wanted]
            schema = pa.schema([(name, pa.string()) for name in wanted])
            yield schema.empty_table().to_pandas()
            while batch := list(islice(rows, ROWS)):
                cells = ([row[index] or None for row in batch] for index in at)
                yield pa.table([pa.array(column, pa.string()) for column in cells], schema=schema).to_pandas()
    except (OSError, EOFError, UnicodeError, LookupError, pa.ArrowException) as error:
        raise SourceError(f"{path}: not a readable CSV file ({one_line(error)}); {_mend(error)}") from error


def _mend(error: Exception) -> str:
    encoding = isinstance(error, (UnicodeError, LookupError))
    return "is it of another encoding? (mapping key encoding of custom)" if encoding else "fetch it again"


def _open_text(path: Path, encoding: str) -> IO[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding=encoding, newline="")


def _csv_rows(file: IO[str], path: Path, form: CsvForm) -> Iterator[list[str]]:
    """The header, without spaces at the names' ends, and then each row, of as many cells."""
    for _ in range(form.skip_lines):
        file.readline()
    reader = csv.reader(file, delimiter=form.delimiter, strict=True, skipinitialspace=form.skip_space)
    header: list[str] | None = None
    while True:
        line = form.skip_lines + reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise SourceError(
                f"{path}: not a readable CSV file: the row that begins in line {line} does not end as a row of a CSV file: a quotation mark is not "
                "closed, or text stands behind a closing one; mend that line (a mark inside a text is written twice)"
            ) from error
        if len(row) < 2 and not "".join(row).strip():
            continue
        if header is None:
            header = [name.strip() for name in row]
            if twice := sorted({name for name in header if name and header.count(name) > 1}):
                raise SourceError(f"{path}: column(s) {', '.join(twice)} appear twice in the header; rename one")
            yield header
            continue
        if len(row) != len(header):
            raise SourceError(
                f"{path}: not a readable CSV file: line {line} has {len(row)} cells, the header {len(header)}; a delimiter or a line break inside a "
                "text needs quotation marks around the text"
            )
        if form.skip_lines + reader.line_num > line and (swallowed := _swallowed(row, form)):
            raise SourceError(
                f"{path}: not a readable CSV file: a text of the row that begins in line {line} holds what looks like another row "
                f"(line {line + swallowed}): a quotation mark is not closed; mend that line, or give the table as JSONL"
            )
        yield row
    if header is None:
        raise SourceError(f"{path}: empty; expected a CSV file with a header line")


def _swallowed(row: Sequence[str], form: CsvForm) -> int:
    """Which line after the row's first (from 1) looks like a row of its own, whole or to where its text begins; 0 where none
    does. It has as many cells as the row, and at each place where the row has an id or a path (digits, no space), so has it,
    of the same form."""
    before = 0
    for place, cell in enumerate(row):
        lines = cell.splitlines()
        own = [(at, _shape(other)) for at, other in enumerate(row) if at != place and _like_an_id(other)]
        for number, text in enumerate(lines[1:], start=1):
            if not own or form.delimiter not in text:
                continue
            cells = next(csv.reader([text.replace("\0", "")], delimiter=form.delimiter), [])
            if len(cells) == len(row) and all(_like_an_id(cells[at]) and _shape(cells[at]) == s for at, s in own):
                return before + number
        before += max(0, len(lines) - 1)
    return 0


def _like_an_id(cell: str) -> bool:
    return len(cell) < 300 and any(c.isdigit() for c in cell) and not any(c.isspace() for c in cell.strip())


def _shape(cell: str) -> tuple[str, int]:
    """Where two ids have the same, they are of one kind: letters and digits in one, other characters as they are; and about
    how long (12 and 1204 differ, 9 and 10 don't)."""
    return re.sub(r"[A-Za-z0-9]+", "w", cell.strip()), (len(cell.strip()) + 1) // 3


def csv_form(
    path: Path, columns: Sequence[str] = (), delimiter: str | None = None, encoding: str | None = None
) -> CsvForm:
    """How the CSV file is written: as given, else as its first bytes and its header show. Of several delimiters the one with
    which the header has all of `columns`, or most columns.

    Raises:
        SourceError: unreadable, or an encoding that is not known.
    """
    guessed = [name for name, given in (("delimiter", delimiter), ("encoding", encoding)) if given is None]
    try:
        encoding = encoding or _guess_encoding(path)
        if encoding == "utf-8":
            encoding = "utf-8-sig"  # takes both
        with _open_text(path, encoding) as file:
            first = file.readline(LONGEST_CELL)
            skip = 0
            if match := re.fullmatch(r"sep=(.)[\r\n]*", first):  # a line that Excel writes and reads
                skip, delimiter = 1, delimiter or match[1]
                first = file.readline(LONGEST_CELL)
    except (OSError, EOFError, UnicodeError, LookupError) as error:
        raise SourceError(f"{path}: not a readable CSV file ({one_line(error)}); {_mend(error)}") from error

    def names(mark: str) -> list[str]:
        try:
            return [name.strip() for name in next(csv.reader([first], delimiter=mark, skipinitialspace=True), [])]
        except csv.Error:
            return []

    if delimiter is None:
        delimiter = max(DELIMITERS, key=lambda mark: (all(c in names(mark) for c in columns), len(names(mark))))
    return CsvForm(delimiter, encoding, skip_space=True, skip_lines=skip, guessed=tuple(guessed))


def _guess_encoding(path: Path) -> str:
    """UTF-8, UTF-16 or UTF-32 by the byte order mark or the zeros of the first bytes; else UTF-8 where the whole file is; else
    Windows' Latin 1."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        start = file.read(4096)
        for mark, name in _BYTE_ORDER_MARKS:
            if start.startswith(mark):
                return name
        if start.count(0) * 4 > len(start):
            return "utf-16-le" if start[1::2].count(0) >= start[::2].count(0) else "utf-16-be"
        decoders = {
            "utf-8": codecs.getincrementaldecoder("utf-8")(),
            "cp1252": codecs.getincrementaldecoder("cp1252")(),
        }
        block = start
        while decoders:
            for name in list(decoders):
                try:
                    decoders[name].decode(block, final=not block)
                except UnicodeDecodeError:
                    del decoders[name]
            if not block:
                break
            block = file.read(1 << 20)
    return next(iter(decoders), "latin-1")


def iterate_table(path: Path, columns: Sequence[str], form: CsvForm | None = None) -> Iterator[pd.DataFrame]:
    """`columns` of a CSV, JSONL or Parquet table, some thousand rows at a time: text without white space at its ends, None
    for null. Numbers are text alike in all three: 7, 7.0 and "7" are `7`, "07" is `07`.

    Raises:
        SourceError: unreadable, of another kind, or a column is missing.
    """
    if path.suffix == ".parquet":
        tables = _iterate_parquet(path, columns)
    elif path.suffix == ".jsonl":
        tables = _iterate_jsonl(path, columns, form)
    elif path.name.endswith(CSV_SUFFIXES):
        tables = iterate_csv(path, columns, form=form)
    else:
        raise SourceError(f"{path}: expected a {EXPECTED} table; export it as one of them")
    for number, table in enumerate(tables):
        try:
            yield pd.DataFrame(
                {name: pd.Series([as_text(value) for value in table[name]], dtype=object) for name in columns}
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise SourceError(f"{path}: in rows from {number * ROWS + 1} on, {one_line(error)}") from error


def as_text(value: Any) -> str | None:
    """A cell as text; None for null and for white space. An integral number has no `.0`, however it was stored.

    Raises:
        ValueError, TypeError: a list or an object, or a number that its column no longer holds exactly.
    """
    if value is None or value is pd.NaT or value != value:  # NaN
        return None
    if isinstance(value, str):
        text = value.strip()
        return text.removesuffix(".0") if re.fullmatch(r"\d{1,18}\.0", text) else text or None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if abs(value) >= _LARGEST_EXACT:
            raise ValueError("a number is too large for a floating column: its last digits are lost; export it as text")
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, (list, dict, tuple, set, bytes)):
        raise TypeError(f"a cell holds a {type(value).__name__}; expected text or a number")
    return str(value)


def is_nothing(text: str | None) -> bool:
    """Whether a cell is one of the words that stand for nothing (nan, None, N/A, NULL, …), or blank."""
    return text is None or text.strip().casefold() in NOTHING


def columns_of(path: Path, form: CsvForm | None = None) -> list[str]:
    """The table's columns; of JSONL, those of its first rows.

    Raises:
        SourceError: as `iterate_table`.
    """
    try:
        if path.suffix == ".parquet":
            return list(pq.read_schema(path).names)
        if path.suffix == ".jsonl":
            rows = (row for _, row in islice(_json_rows(path, form), ROWS))
            return list(dict.fromkeys(name for row in rows for name in row))
        if not path.name.endswith(CSV_SUFFIXES):
            raise SourceError(f"{path}: expected a {EXPECTED} table; export it as one of them")
        form = form or csv_form(path)
        with _open_text(path, form.encoding) as file:
            return next(_csv_rows(file, path, form))
    except (OSError, EOFError, UnicodeError, LookupError, pa.ArrowException) as error:
        raise SourceError(f"{path}: not readable ({one_line(error)})") from error


def _iterate_parquet(path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, list]]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if missing := [column for column in columns if column not in names]:
                raise _missing(path, missing, names)
            for batch in file.iter_batches(ROWS, columns=list(columns)):
                # to_pylist, not to_pandas: integers with a null among them must not become floating numbers.
                yield {name: batch.column(name).to_pylist() for name in columns}
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path}: not a readable Parquet file ({one_line(error)})") from error


def _iterate_jsonl(path: Path, columns: Sequence[str], form: CsvForm | None) -> Iterator[Mapping[str, list]]:
    names: dict[str, None] = {}  # of all rows: one row need not have every column
    rows = _json_rows(path, form)
    while batch := list(islice(rows, ROWS)):
        for _, row in batch:
            names.update(dict.fromkeys(row))
        yield {name: [row.get(name) for _, row in batch] for name in columns}
    if missing := [column for column in columns if column not in names]:
        raise _missing(path, missing, list(names))


def _json_rows(path: Path, form: CsvForm | None) -> Iterator[tuple[int, dict]]:
    """Line number and object of each line that is not blank."""
    try:
        # Not newline="": a JSON text has no line break of any kind inside a line.
        with path.open(encoding=form.encoding if form else "utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = without_surrogates(json.loads(line, parse_constant=lambda token: None), line)
                except (ValueError, RecursionError) as error:
                    raise SourceError(
                        f"{path}: line {number} is not JSON ({one_line(error) if isinstance(error, ValueError) else 'too deep'})"
                    ) from error
                if not isinstance(row, dict):
                    raise SourceError(f"{path}: line {number} is not a JSON object")
                yield number, {str(key).strip(): value for key, value in row.items()}
    except (OSError, UnicodeError, LookupError) as error:
        raise SourceError(f"{path}: not a readable JSONL file ({one_line(error)}); {_mend(error)}") from error


def without_surrogates(value: Any, source: str) -> Any:
    """A parsed JSON value with U+FFFD for each half of a surrogate pair that has no other half (`\\ud83d` alone): no text can
    be written with one. `source` is the JSON text, which tells whether there can be any."""
    if not _ESCAPED_SURROGATE.search(source):
        return value
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {without_surrogates(k, source): without_surrogates(v, source) for k, v in value.items()}
    return [without_surrogates(item, source) for item in value] if isinstance(value, list) else value


def _missing(path: Path, missing: Sequence[str], names: Sequence[str]) -> SourceError:
    return SourceError(f"{path}: column(s) {', '.join(missing)} of the mapping missing; it has {', '.join(names[:30])}")
