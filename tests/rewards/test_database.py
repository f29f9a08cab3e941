"""The files that several ranks share open for all of them at once."""

from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path

from rewards.chexprompt.cache import open_cache
from rewards.engine import DiskCache

PROCESSES, ROUNDS = 6, 20


def open_both(folder: str, start) -> None:
    start.wait()
    open_cache(Path(folder) / "judge_cache.sqlite", create=True).close()
    DiskCache(folder).put([(b"key", b"value")])


def test_processes_that_start_together_all_open_a_new_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for number in range(ROUNDS):
        folder, start = tmp_path / str(number), context.Barrier(PROCESSES)
        folder.mkdir()
        ranks = [context.Process(target=open_both, args=(str(folder), start)) for _ in range(PROCESSES)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        assert [rank.exitcode for rank in ranks] == [0] * PROCESSES


def test_a_value_that_is_not_as_it_was_stored_counts_as_absent(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    cache.put([(b"whole", b"value"), (b"changed", b"value"), (b"moved", b"value")])
    with sqlite3.connect(cache.path) as connection:
        connection.execute("UPDATE entries SET value = zeroblob(13) WHERE key = ?", (b"changed",))
        connection.execute(
            "UPDATE entries SET value = (SELECT value FROM entries WHERE key = ?) WHERE key = ?", (b"whole", b"moved")
        )
    connection.close()
    assert cache.get([b"whole", b"changed", b"moved", b"absent"]) == [b"value", None, None, None]
    assert cache.damaged == 2
