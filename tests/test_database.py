"""The files that several ranks share open for all of them at once."""

from __future__ import annotations

import multiprocessing
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
