"""What all model-based metrics share: each text once, caches, batches by length under a token budget.

A `TextModel` turns texts into values (a graph, a vector and labels, token vectors). The engine sees to it that a GRPO
batch costs what it must: identical rollouts once, a reference once for all its rollouts and never again while it stays
in the cache, short texts with short ones, and one forward pass for all metrics that want the same value.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from rewards.database import open_database, reason
from rewards.encoder import Encoder, PackedEncoder, PaddedEncoder
from rewards.metric import MetricError

log = logging.getLogger(__name__)

SEAL_BYTES = 8  # the checksum before each value of the cache on disk
Value = TypeVar("Value")

# Tokens in a batch, by device. On CPU cores small batches stay in cache; a GPU wants large ones.
TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 32768}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class EngineSettings:
    """Where and how the models run.

    Attributes:
        device: `cpu`, `cuda`, `cuda:1` …; None takes a GPU where there is one.
        tokens_per_batch: token budget of a forward pass; None takes `TOKENS_PER_BATCH`'s for the device.
        dtype: of the encoders' products. float32 gives the published numbers. bfloat16 (a GPU, or a CPU with AMX) and
            float16 (a GPU) are faster and change scores; benchmarks/README.md says by how much.
        compile: torch.compile the encoders (transformers' own forward pass), for a GPU; scores change by float rounding.
        cache_megabytes: bound of each model's cache in memory.
        cache_dir: folder of the cache on disk, shared by processes; None keeps none. It holds no whole report, only
            hashes of it, and of RadGraph and RaTEScore the words of the entities.
        cache_disk_megabytes: bound of that cache; beyond it the oldest values go. BERTScore takes 0.1 kB a pair, RadGraph
            and CheXbert about 3 kB a report each.
    """

    device: str | None = None
    tokens_per_batch: int | None = None
    dtype: str = "float32"
    compile: bool = False
    cache_megabytes: int = 512
    cache_dir: Path | None = None
    cache_disk_megabytes: int = 4096

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is unknown; one of {', '.join(DTYPES)}")
        device = self.torch_device
        if device.type not in TOKENS_PER_BATCH:
            raise ValueError(f"device {self.device} is unknown; cpu, cuda, cuda:1 …")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(
                f"device {self.device}: this machine has {torch.cuda.device_count()} GPU(s) that torch can use"
            )
        if self.dtype == "float16" and device.type == "cpu":
            raise ValueError("dtype float16 is for a GPU; on a CPU use float32 or bfloat16")
        if self.tokens_per_batch is not None and self.tokens_per_batch < 1:
            raise ValueError(f"tokens_per_batch is {self.tokens_per_batch}; at least 1")
        for name in ("cache_megabytes", "cache_disk_megabytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; at least 1")

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def budget(self) -> int:
        return self.tokens_per_batch or TOKENS_PER_BATCH.get(self.torch_device.type, TOKENS_PER_BATCH["cuda"])

    def encoder(self, model: nn.Module, layers: int | None = None) -> Encoder:
        """The fastest forward pass for `model` on this device."""
        config: Any = model.config
        packed = self.torch_device.type == "cpu" and config.model_type in ("bert", "roberta")
        if packed and config.hidden_act == "gelu" and not self.compile:
            return PackedEncoder(model, self.torch_device, DTYPES[self.dtype], layers)
        return PaddedEncoder(model, self.torch_device, DTYPES[self.dtype], layers, self.compile)

    def label(self) -> str:
        """What of these settings changes numbers, for fingerprints; empty where nothing does."""
        return "" if self.dtype == "float32" else f"@{self.dtype}"


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices of texts in batches of similar length, longest first, of at most `budget` tokens with padding counted.

    A text longer than the budget is a batch of its own.
    """
    batch: list[int] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True):
        if batch and longest * (len(batch) + 1) > budget:
            yield batch
            batch = []
        if not batch:
            longest = lengths[index]
        batch.append(index)
    if batch:
        yield batch


class MemoryCache(Generic[Value]):
    """The last used values, up to a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        self._values: OrderedDict[str, tuple[Value, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> Value | None:
        entry = self._values.get(key)
        if entry is None:
            return None
        self._values.move_to_end(key)
        return entry[0]

    def put(self, key: str, value: Value, size: int) -> None:
        if key in self._values:
            self.bytes -= self._values.pop(key)[1]
        self._values[key] = (value, size)
        self.bytes += size
        while self.bytes > self.max_bytes and self._values:
            self.bytes -= self._values.popitem(last=False)[1][1]


class DiskCache:
    """Values by hash in one SQLite file, safe for several processes; bytes in, bytes out, nothing is unpickled.

    Each is stored with a checksum: what a disk or another program made of it is never taken for a value.

    At most `max_bytes` of the file are in use: past that the oldest values go, a tenth of all at a time, and their place
    is used again. SQLite's write-ahead log wants a local disk: on a cluster each node has its own folder.
    """

    FILE_NAME = "scores.sqlite"
    _TABLE = "CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB NOT NULL)"

    def __init__(self, folder: Path | str, max_bytes: int = 4096 * 2**20) -> None:
        self.path, self.max_bytes, self.damaged = Path(folder) / self.FILE_NAME, max_bytes, 0
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._connection: sqlite3.Connection | None = None
        self._owner = 0

    def _open(self) -> sqlite3.Connection:
        if self._connection is None or self._owner != os.getpid():  # a connection does not survive a fork
            self._connection = open_database(self.path, self._TABLE)
            self._owner = os.getpid()
        return self._connection

    @staticmethod
    def key(*parts: str) -> bytes:
        """sha256 over the parts, their lengths included."""
        digest = hashlib.sha256()
        for part in parts:
            data = part.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "big") + data)
        return digest.digest()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what a disk and SQLite can raise into one `MetricError` line."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise MetricError(f"the cache {self.path} (score_cache_dir): {reason(error)}") from error

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each key, None where there is none, or one that is not as it was stored (`damaged` counts those).

        Raises:
            MetricError: the file cannot be read, or is no cache.
        """
        found: dict[bytes, bytes] = {}
        with self._explained():
            connection = self._open()
            for first in range(0, len(keys), 500):
                some = list(keys[first : first + 500])
                marks = ",".join("?" * len(some))
                found.update(connection.execute(f"SELECT key, value FROM entries WHERE key IN ({marks})", some))
        whole = [self._unsealed(key, found[key]) if key in found else None for key in keys]
        if damaged := sum(key in found and value is None for key, value in zip(keys, whole, strict=True)):
            self.damaged += damaged
            log.warning("%s: %d damaged values are computed again", self.path, damaged)
        return whole

    @staticmethod
    def _seal(key: bytes, value: bytes) -> bytes:
        return hashlib.blake2b(key + value, digest_size=SEAL_BYTES).digest()

    def _unsealed(self, key: bytes, stored: Any) -> bytes | None:
        if not isinstance(stored, bytes) or self._seal(key, stored[SEAL_BYTES:]) != stored[:SEAL_BYTES]:
            return None
        return stored[SEAL_BYTES:]

    def put(self, entries: Sequence[tuple[bytes, bytes]]) -> None:
        """Store (key, value) pairs, and drop the oldest where the bound is passed, in one transaction.

        Raises:
            MetricError: the file cannot be written, or is no cache.
        """
        with self._explained(), self._open() as connection:
            sealed = [(key, self._seal(key, value) + value) for key, value in entries]
            connection.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?)", sealed)
            while self.bytes_used() > self.max_bytes:
                (count,) = connection.execute("SELECT COUNT(*) FROM entries").fetchone()
                if not count:
                    break
                oldest = "SELECT rowid FROM entries ORDER BY rowid LIMIT ?"  # a row stored again gets a new number
                connection.execute(f"DELETE FROM entries WHERE rowid IN ({oldest})", (count // 10 + 1,))

    def bytes_used(self) -> int:
        """Bytes of the file that hold values; what was freed is not among them."""
        pages, free, size = (
            self._open().execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size


class TextModel(ABC, Generic[Value]):
    """A model that turns texts into values, with the engine around it.

    Attributes:
        fingerprint: sha256 of the files that were loaded.
        settings: where and how it runs.
        encoder_seconds: wall-clock time spent in forward passes so far.
        texts_encoded: how many texts went through one.
    """

    # Set by a model whose values are too large for the disk.
    keeps_on_disk = True

    def __init__(self, fingerprint: str, settings: EngineSettings) -> None:
        self.fingerprint, self.settings = fingerprint + settings.label(), settings
        self.encoder_seconds, self.texts_encoded = 0.0, 0
        self._memory: MemoryCache[Value] = MemoryCache(settings.cache_megabytes * 2**20)
        self._disk = (
            DiskCache(settings.cache_dir, settings.cache_disk_megabytes * 2**20) if settings.cache_dir else None
        )
        self._lock = threading.RLock()

    @abstractmethod
    def prepare(self, texts: list[str]) -> tuple[list[Any], list[int]]:
        """Tokenise: one prepared text, and its number of tokens, for each text."""

    @abstractmethod
    def forward(self, prepared: list[Any]) -> list[Value]:
        """Values of one batch."""

    @abstractmethod
    def size(self, value: Value) -> int:
        """Bytes that a value takes in memory, roughly."""

    def pack(self, value: Value) -> bytes:
        """A value for the disk."""
        raise NotImplementedError

    def unpack(self, data: bytes) -> Value:
        """`pack` undone."""
        raise NotImplementedError

    def encode(self, encoder: Encoder, ids: list[list[int]], first_only: bool = False) -> torch.Tensor:
        """`encoder`'s forward pass, its time counted."""
        start = time.perf_counter()
        hidden = encoder(ids, first_only)
        if hidden.is_cuda:
            torch.cuda.synchronize(hidden.device)
        self.encoder_seconds += time.perf_counter() - start
        return hidden

    def values(self, texts: Sequence[str]) -> list[Value]:
        """The value of each text; identical texts, and those in a cache, cost no forward pass."""
        with self._lock:
            found: dict[str, Value] = {}
            for text in dict.fromkeys(texts):
                value = self._memory.get(text)
                if value is not None:
                    found[text] = value
            missing = [text for text in dict.fromkeys(texts) if text not in found]
            if missing and self._disk is not None and self.keeps_on_disk:
                missing = self._read(missing, found)
            if missing:
                self._compute(missing, found)
            return [found[text] for text in texts]

    def _read(self, missing: list[str], found: dict[str, Value]) -> list[str]:
        assert self._disk is not None
        keys = [self._disk.key(self.fingerprint, text) for text in missing]
        for text, data in zip(missing, self._disk.get(keys), strict=True):
            if data is not None:
                self._keep(text, self.unpack(data), found)
        return [text for text in missing if text not in found]

    def _compute(self, missing: list[str], found: dict[str, Value]) -> None:
        prepared, lengths = self.prepare(missing)
        for batch in token_batches(lengths, self.settings.budget):
            for index, value in zip(batch, self.forward([prepared[i] for i in batch]), strict=True):
                self._keep(missing[index], value, found)
        self.texts_encoded += len(missing)
        if self._disk is not None and self.keeps_on_disk:
            self._disk.put([(self._disk.key(self.fingerprint, text), self.pack(found[text])) for text in missing])

    def _keep(self, text: str, value: Value, found: dict[str, Value]) -> None:
        found[text] = value
        self._memory.put(text, value, self.size(value) + 2 * len(text) + 200)
