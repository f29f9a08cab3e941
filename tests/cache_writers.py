"""What processes of their own write into the two caches: in a module that a spawned process can import by its name."""

from __future__ import annotations

from pathlib import Path

from rewards.chexprompt.cache import JudgeCache
from rewards.chexprompt.judgement import Judgement
from rewards.engine import DiskCache


def write_judgements(folder: Path, worker: int) -> None:
    """100 answers that all workers write, and 100 of its own."""
    cache, judgement = JudgeCache(folder, "m", "v", {"temperature": 0.0}), Judgement((1, 0, 0, 0, 0, 0), (0,) * 6)
    for i in range(100):
        cache.put("shared", f"candidate {i}", judgement, 1, 1)
        cache.put("own", f"candidate {worker} {i}", judgement, 1, 1)


def write_values(folder: Path, worker: int) -> None:
    """100 values that all workers write, and 100 of its own."""
    cache = DiskCache(folder)
    for i in range(100):
        cache.put([(cache.key("shared", str(i)), str(i).encode()), (cache.key(str(worker), str(i)), b"own")])
