"""What a weights folder should hold, by the lock file that `make weights` writes there: origin, size and sha256 of each file."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from foundation.errors import OneLineError

LOCK = "weights.lock.json"
_BLOCK = 1 << 20


class FetchError(OneLineError):
    """Weights that could not be had, or are not what they should be: one line, with what mends it."""


@dataclass
class Lock:
    """What a weights folder should hold.

    Attributes:
        files: path in the folder → {repository, revision, size, sha256}.
        complete: names of the sources that have arrived as a whole.
    """

    files: dict[str, dict[str, Any]]
    complete: list[str]

    def write(self, folder: Path) -> None:
        """Write the lock file atomically, sorted."""
        content = {"complete": sorted(set(self.complete)), "files": dict(sorted(self.files.items()))}
        temporary = folder / f".{LOCK}.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, folder / LOCK)


def read_lock(folder: Path) -> Lock:
    """The lock of `folder`; an empty one where nothing was fetched.

    Raises:
        FetchError: the lock file is damaged.
    """
    path = folder / LOCK
    if not path.is_file():
        return Lock({}, [])
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        lock = Lock(content["files"], content["complete"])
        for name, entry in lock.files.items():
            if not isinstance(entry["size"], int) or not all(
                isinstance(entry[key], str) for key in ("sha256", "repository", "revision")
            ):
                raise ValueError(f"{name} has no size and sum")
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ValueError(f"{name!r} leaves the folder")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FetchError(f"{path} is damaged ({error}); remove it, and run make weights again") from error
    return lock


def problems(folder: Path, deep: bool = False) -> list[str]:
    """Each locked file that is missing or differs, as `name: what`; sizes only, or (`deep`) sha256 too."""
    found = []
    for name, entry in read_lock(folder).files.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{name}: missing")
        elif path.stat().st_size != entry["size"]:
            found.append(f"{name}: {path.stat().st_size:,} bytes instead of {entry['size']:,}")
        elif deep and sha256(path) != entry["sha256"]:
            found.append(f"{name}: sha256 differs")
    return found


def lock_fingerprint(folder: Path, prefix: str = "") -> str:
    """sha256 over the locked sums of the files whose path starts with `prefix`: what was fetched, in 64 characters."""
    files = sorted(read_lock(folder).files.items())
    lines = [f"{name} {entry['sha256']}" for name, entry in files if name.startswith(prefix)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
