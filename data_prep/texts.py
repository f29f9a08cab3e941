"""The reports' sections while studies are prepared: on disk, so that memory does not grow with what was written in them."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from data_prep.sections import RAW, SECTIONS
from data_prep.tables import is_nothing

WORDS = tuple(f"{name}_words" for name in SECTIONS)
# What stands for the sections in a frame of studies: where they lie, and words (runs of non-space) of each, 0 where absent.
TEXT_COLUMNS = ("text", *WORDS)
KEPT = (*SECTIONS, *RAW.values())
BATCH = 2048  # reports written or read at a time


class Texts:
    """Sections by number, in a temporary database that ends with this object (SQLite's own, below TMPDIR or /var/tmp)."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._count = 0
        for setting in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -4096"):
            self._database.execute(f"PRAGMA {setting}")
        self._database.execute(f"CREATE TABLE reports (number INTEGER PRIMARY KEY, {', '.join(KEPT)})")

    def add(self, reports: Iterable[Mapping[str, str | None] | None]) -> pd.DataFrame:
        """Keep `reports` (mappings with some of the names of KEPT; other keys are ignored; None: another part's, which is not
        kept and counts no word). An absent raw section is its section.

        Returns:
            TEXT_COLUMNS, one row a report, in order.

        Raises:
            OSError: the disk that holds temporary files is full.
        """
        columns: dict[str, list[int]] = {name: [] for name in TEXT_COLUMNS}

        def rows() -> Iterator[tuple]:
            for report in reports:
                if report is None:
                    for name in TEXT_COLUMNS:
                        columns[name].append(0)
                    continue
                texts = [report.get(name) for name in SECTIONS]
                # A word for nothing is no training target. (`Comparison: None` says something.)
                texts = [None if name in RAW and is_nothing(t) else t for name, t in zip(SECTIONS, texts, strict=True)]
                words = [len(text.split()) if text else 0 for text in texts]
                texts = [text if number else None for text, number in zip(texts, words, strict=True)]
                raw = [
                    text and (report.get(RAW[name]) or text)
                    for name, text in zip(SECTIONS, texts, strict=True)
                    if name in RAW
                ]
                self._count += 1
                for name, value in zip(TEXT_COLUMNS, (self._count, *words), strict=True):
                    columns[name].append(value)
                yield self._count, *texts, *raw

        try:
            self._database.execute("BEGIN")
            self._database.executemany(f"INSERT INTO reports VALUES (?{', ?' * len(KEPT)})", rows())
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            mend = f"{error}; free some space or set TMPDIR to a folder that has it"
            raise OSError(errno.ENOSPC, mend, "temporary files") from error
        give_back()
        return pd.DataFrame(columns).astype({"text": "int64", **dict.fromkeys(WORDS, "int32")})

    def get(self, numbers: Sequence[int] | np.ndarray, names: Sequence[str] = SECTIONS) -> list[tuple[str | None, ...]]:
        """The texts of `names` (of KEPT) of each report of `numbers`, in their order; all None for number 0."""
        find = f"SELECT {', '.join(names)} FROM reports WHERE number = ?"
        nothing = (None,) * len(names)
        return [self._database.execute(find, (int(n),)).fetchone() if n else nothing for n in numbers]


def give_back() -> None:
    """Return freed memory to the system: batch after batch, the holes between what is kept would else add up."""
    pa.default_memory_pool().release_unused()
