"""sha256 over a checkpoint's weights, read by several threads."""

from __future__ import annotations

import functools
import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from model.adapter_files import BASE_FILE, adapter_base, is_adapter

PIECE = 4 << 20  # bytes of a weight file that are read at once, by each of
READERS = 8  # threads


def model_fingerprint(path: str) -> str:
    """sha256 over the weight files of a local checkpoint (names and contents, sorted), or the hub name itself.

    An adapter's also covers its base, the dtype of its stage and its configuration: each makes another model.
    """
    folder = Path(path)
    return _fingerprint(path, file_states(folder)) if folder.is_dir() else path


@functools.lru_cache(maxsize=32)
def _fingerprint(path: str, states: tuple[Any, ...]) -> str:
    """`states` are those of the files: what has changed since is read again."""
    folder = Path(path)
    digest = hashlib.sha256()
    for part in _read_ahead(sorted(folder.glob("*.safetensors"))):
        digest.update(part)
    if is_adapter(path):
        for name in ("adapter_config.json", BASE_FILE):
            digest.update((folder / name).read_bytes() if (folder / name).is_file() else b"")
        digest.update(model_fingerprint(adapter_base(path)).encode())
    return digest.hexdigest()


def file_states(folder: Path) -> tuple[Any, ...]:
    """Name, size and time of change of the files that make a checkpoint's model, its base's included."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")])
    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns, file.stat().st_ino) for file in files]
    if is_adapter(str(folder)) and Path(base := adapter_base(str(folder))).is_dir():
        states += file_states(Path(base))
    return tuple(states)


def _read_ahead(files: Sequence[Path]) -> Iterator[bytes]:
    """Each file's name, then its bytes; threads read the next pieces meanwhile, which a network disk needs to be fast."""
    pieces = iter([(file, start) for file in files for start in range(0, max(file.stat().st_size, 1), PIECE)])
    with ThreadPoolExecutor(READERS) as readers:
        reading = deque((file, start, readers.submit(_read, file, start)) for file, start in islice(pieces, READERS))
        while reading:
            file, start, piece = reading.popleft()
            reading.extend((*following, readers.submit(_read, *following)) for following in islice(pieces, 1))
            if start == 0:
                yield file.name.encode()
            yield piece.result()


def _read(file: Path, start: int) -> bytes:
    with file.open("rb") as stream:
        stream.seek(start)
        return stream.read(PIECE)
