"""Are all weights those that were fetched?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from foundation.weights_lock import LOCK, lock_fingerprint, problems, read_lock
from launch.verifying.line import Line, Subject, skipped
from model.fingerprint import model_fingerprint


def check_fingerprints(subject: Subject) -> Iterator[Line]:
    """sha256 of every file of the weights folder against its lock, and the base model's fingerprint."""
    folder = subject.weights_dir
    locked = read_lock(folder).files
    name, expected = f"weights in {folder}", f"every file as in {LOCK}"
    if locked:
        wrong = problems(folder, deep=True)
        found = f"{len(locked) - len(wrong)} of {len(locked)} files, fingerprint {lock_fingerprint(folder)[:12]}"
        yield Line(name, expected, "; ".join([found, *wrong]), not wrong)
    else:
        yield skipped(name, expected, f"{folder} has no {LOCK}; make weights fetches weights and writes it")
    there = any(Path(subject.model).glob("*.safetensors"))
    found = f"sha256 {model_fingerprint(subject.model)}" if there else "no *.safetensors there"
    yield Line(f"base model {subject.model}", "weights, with a fingerprint", found, there)
