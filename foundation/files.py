"""Files that are either whole or not there: written under a temporary name, looked at, brought to the disk, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it becomes `path` at the end, and is gone after any error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # after a power cut the new name must not stand for an empty file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically, and its folder where there is none.

    Raises:
        OSError: not all of it could be written (the disk is full).
    """
    with whole_file(path) as temporary:
        with temporary.open("wb") as file:
            file.write(content)
        if (size := temporary.stat().st_size) != len(content):
            raise OSError(f"{path.name}: {size} of {len(content)} bytes were written; is the disk full?")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, and its folder where there is none."""
    write_bytes(path, text.encode("utf-8"))


def sha256_of(path: Path) -> str:
    """sha256 of a file's content, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically. NaN and infinities are refused: strict parsers could not read them.

    Raises:
        ValueError: a number that JSON does not have.
    """
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def remove_temporaries(folder: Path, names: Iterator[str] | tuple[str, ...]) -> None:
    """Remove what `whole_file` left in `folder` for files of these names when its process was killed."""
    for name in names:
        for path in folder.glob(f".{glob_escape(name)}.*.tmp"):
            path.unlink(missing_ok=True)


def glob_escape(name: str) -> str:
    """`name` with its glob characters taken literally."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
