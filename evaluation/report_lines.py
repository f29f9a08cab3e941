"""Lines of finished reports, one a study, as they are written; a line that a kill cut is dropped."""

from __future__ import annotations

import errno
import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from foundation.errors import EvaluationError


def partial_path(out: Path, shard: int | None = None) -> Path:
    return out / ("predictions.partial.jsonl" if shard is None else f"predictions.partial.{shard}.jsonl")


def partials(out: Path) -> list[Path]:
    """All files of finished lines in `out`: one, or one a process."""
    return sorted(out.glob("predictions.partial*.jsonl"))


def lock_lines(file: TextIO, path: Path) -> None:
    """Keep a second process, e.g. the rest of a killed run, from writing between this one's lines."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise EvaluationError(f"another process is writing {path}; wait until it has ended, or end it") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):  # a file system without locks
            raise


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The finished lines of a file that is appended to; a last line cut by a kill is not one."""
    if not path.is_file():
        return []
    rows, damaged = [], 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                row["study_id"]
            except (ValueError, KeyError, TypeError, RecursionError):
                damaged += 1
                continue
            rows.append(row)
    if damaged:
        print(f"{path}: {damaged} damaged line(s) left out; their studies are done again")
    return rows


def is_report(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("model_prediction"), str) and isinstance(row.get("truncated"), bool)


def drop_cut_line(path: Path) -> None:
    """Remove a last line that a kill cut short, so that the next one is not appended to it."""
    if path.is_file():
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)
