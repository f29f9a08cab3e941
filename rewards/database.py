"""One SQLite file that several processes write: how both caches open theirs."""

from __future__ import annotations

import errno
import sqlite3
import time
from pathlib import Path

# How long a process waits for another one's commit, which takes well under a millisecond.
BUSY_SECONDS = 60.0
_PAUSE_SECONDS = 0.01
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


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


def reason(error: Exception) -> str:
    """What an error of SQLite, or of the file system, says of a cache's file, and what mends it."""
    said = str(error) if isinstance(error, sqlite3.Error) else getattr(error, "strerror", None) or str(error)
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR) or getattr(error, "errno", None) in _NO_ROOM:
        return f"{said}: make room on its disk, or mend it, and run the same command again"
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM) or isinstance(error, OSError):
        return f"{said}: make its folder writable, or name another folder"
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or not code:
        return f"{said}: it is damaged or no cache; move it away, or name another folder"
    return f"{said}: run the same command again"


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
