"""Answers on disk, so that no pair of reports is paid for twice. One SQLite file, safe for several processes.

Reports are stored only as hashes: the file holds counts, no patient text. Each answer is committed when it arrives, so
a killed process loses nothing. SQLite's write-ahead log wants a local disk: on a cluster give each node its own folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from foundation.governance import JudgeError
from rewards.chexprompt.judgement import Judgement
from rewards.chexprompt.parse import checked_judgement
from rewards.database import open_database, reason

log = logging.getLogger(__name__)

FILE_NAME = "judge_cache.sqlite"
_TABLE = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    prompt_version TEXT NOT NULL,
    sampling TEXT NOT NULL,
    reference_sha256 TEXT NOT NULL,
    candidate_sha256 TEXT NOT NULL,
    significant TEXT NOT NULL,
    insignificant TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    created REAL NOT NULL
) WITHOUT ROWID
"""


def sha256(text: str) -> str:
    """Hex digest of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class JudgeCache:
    """Judgements by (model, prompt version, sampling settings, reference, candidate).

    Args:
        folder: where `judge_cache.sqlite` is or will be.
        model: the model's name, with its version where the name alone does not say it.
        prompt_version: `Prompt.version`.
        sampling: everything else that is sent and may change the answer.

    The file is opened, and made, at the first use. Every method raises `JudgeError` if it cannot be, or cannot be used.

    Attributes:
        damaged: rows that were read and are no judgement; they count as absent, and are requested again.
    """

    file_name = FILE_NAME

    def __init__(self, folder: Path | str, model: str, prompt_version: str, sampling: dict[str, Any]):
        self.path = Path(folder) / self.file_name
        self.model = model
        self.prompt_version = prompt_version
        self.sampling = json.dumps(sampling, sort_keys=True)
        self.damaged = 0
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._pid = 0

    def key(self, reference: str, candidate: str) -> str:
        """Cache key of a pair: sha256, hex."""
        parts = (self.model, self.prompt_version, self.sampling, sha256(reference), sha256(candidate))
        return sha256(json.dumps(parts))

    def get(self, keys: Sequence[str]) -> dict[str, Judgement]:
        """The judgements that are there, by key. A row passes the check that a live answer passes, or is not there."""
        found = {}
        before = self.damaged
        with self._lock, self._explained():
            connection = self._connect()
            for key in keys:
                row = connection.execute(
                    "SELECT significant, insignificant FROM answers WHERE key = ?", (key,)
                ).fetchone()
                if row:
                    try:
                        found[key] = self.checked(*map(json.loads, row))
                    except (ValueError, TypeError, RecursionError):
                        self.damaged += 1
        if self.damaged > before:
            log.warning("%s: %d damaged answers are requested again", self.path, self.damaged - before)
        return found

    def put(
        self, reference: str, candidate: str, judgement: Judgement, prompt_tokens: int, completion_tokens: int
    ) -> None:
        """Store one judgement; on return it survives the death of this process."""
        row = (
            self.key(reference, candidate),
            self.model,
            self.prompt_version,
            self.sampling,
            sha256(reference),
            sha256(candidate),
            *map(json.dumps, self.kept(judgement)),
            prompt_tokens,
            completion_tokens,
            time.time(),
        )
        with self._lock, self._explained():
            self._connect().execute(f"INSERT OR REPLACE INTO answers VALUES ({', '.join('?' * len(row))})", row)

    # What a judgement is on disk, and the check that it passes on its way back.
    checked = staticmethod(checked_judgement)

    @staticmethod
    def kept(judgement: Judgement) -> tuple[Any, Any]:
        return judgement.significant, judgement.insignificant

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what a disk and SQLite can raise into one `JudgeError` line."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise JudgeError(f"the judge's cache {self.path} (judge_cache_dir): {reason(error)}") from error

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            if self._connection is not None and self._pid == os.getpid():
                self._connection.close()
            self._connection = None

    def _connect(self) -> sqlite3.Connection:
        # A connection must not be used across a fork: a child opens its own.
        if self._connection is None or self._pid != os.getpid():
            self._connection = open_cache(self.path, create=True)
            self._pid = os.getpid()
        return self._connection


def open_cache(path: Path, create: bool = False) -> sqlite3.Connection:
    """An autocommitting connection to a cache file.

    Raises:
        JudgeError: no such file (unless `create`), or not a cache.
    """
    if create:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise JudgeError(f"judge_cache_dir {path.parent} cannot be made: {reason(error)}") from error
    elif not path.is_file():
        raise JudgeError(f"no judge cache at {path}; give the folder that judge_cache_dir named")
    try:
        connection = open_database(path, _TABLE, autocommit=True)
        connection.execute("SELECT key, sampling, completion_tokens, created FROM answers LIMIT 1").fetchone()
    except sqlite3.Error as error:
        raise JudgeError(f"{path} cannot be used as judge cache: {reason(error)} (judge_cache_dir)") from error
    return connection


def cache_stats(path: Path) -> list[dict[str, Any]]:
    """Per model, prompt version and sampling settings: number of answers and the tokens they took."""
    connection = open_cache(path)
    rows = connection.execute(
        "SELECT model, prompt_version, sampling, COUNT(*), SUM(prompt_tokens), SUM(completion_tokens), MIN(created), "
        "MAX(created) FROM answers GROUP BY model, prompt_version, sampling ORDER BY model, prompt_version"
    ).fetchall()
    connection.close()
    names = ("model", "prompt_version", "sampling", "answers", "prompt_tokens", "completion_tokens", "first", "last")
    return [dict(zip(names, row, strict=True)) for row in rows]


def export_cache(path: Path) -> Iterator[dict[str, Any]]:
    """Every cached answer as a record; the counts as lists in the order of `ERROR_TYPES`."""
    connection = open_cache(path)
    cursor = connection.execute("SELECT * FROM answers ORDER BY created, key")
    names = [column[0] for column in cursor.description]
    for row in cursor:
        record = dict(zip(names, row, strict=True))
        try:
            judgement = checked_judgement(json.loads(record["significant"]), json.loads(record["insignificant"]))
        except (ValueError, TypeError, RecursionError):
            log.warning("%s: a damaged answer is left out", path)
            continue
        yield record | {"significant": list(judgement.significant), "insignificant": list(judgement.insignificant)}
    connection.close()


def prune_cache(
    path: Path, older_than_days: float | None = None, model: str | None = None, prompt_version: str | None = None
) -> int:
    """Delete the answers that meet every given condition (at least one), give the space back, and say how many."""
    conditions, values = [], []
    for condition, value in (
        ("created < ?", None if older_than_days is None else time.time() - 86400 * older_than_days),
        ("model = ?", model),
        ("prompt_version = ?", prompt_version),
    ):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    if not conditions:
        raise JudgeError("say what to prune: --older-than DAYS, --model NAME or --prompt-version VERSION")
    connection = open_cache(path)
    deleted = connection.execute(f"DELETE FROM answers WHERE {' AND '.join(conditions)}", values).rowcount
    connection.execute("VACUUM")
    connection.close()
    return deleted
