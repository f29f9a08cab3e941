"""One SQLite file that several processes write: how both caches open theirs."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

# How long a process waits for another one's commit, which takes well under a millisecond.
BUSY_SECONDS = 60.0
_PAUSE_SECONDS = 0.01


def open_database(path: Path, table: str, *, autocommit: bool = False) -> sqlite3.Connection:
    """A connection, usable from any thread, to a file with a write-ahead log and `table` (a `CREATE TABLE IF NOT EXISTS`).

    The log wants a local disk: on a cluster each node has its own file. Raises `sqlite3.Error`.
    """
    connection = sqlite3.connect(
        path, timeout=BUSY_SECONDS, isolation_level=None if autocommit else "", check_same_thread=False
    )
    try:
        _write_ahead(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(table)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _write_ahead(connection: sqlite3.Connection) -> None:
    # Two processes that set the mode of a new file at once would each wait for the other, so SQLite refuses one of them
    # at once, whatever its timeout: a run of several ranks then failed at its first start.
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        time.sleep(_PAUSE_SECONDS)
