"""Parts of a data set (`--shard i/n`): which patients each holds, and the card's sentences whose numbers add up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha1
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count` (from 1), by patient. Priors stay whole: a patient is in one part."""

    index: int = 1
    count: int = 1

    def has(self, patient: object) -> bool:
        """Whether the patient belongs to this part."""
        return int(sha1(str(patient).encode()).hexdigest()[:8], 16) % self.count == self.index - 1

    def holds(self, patients: pd.Series) -> pd.Series:
        """Whether each patient belongs to this part."""
        belongs = {patient: self.has(patient) for patient in patients.unique()}
        return pd.Series([belongs[patient] for patient in patients], index=patients.index, dtype=bool)


@dataclass(frozen=True)
class Counted:
    """A sentence of the data card with numbers of studies.

    Args:
        text: a format of `counts`, such as "{0:,} studies have no date".
        always: said even where the first of `counts` is 0.
    """

    text: str
    counts: tuple[int, ...]
    always: bool = False


Note = str | Counted


def said(notes: Iterable[Note]) -> list[str]:
    """The notes as sentences, without those that count nothing."""
    return [
        note if isinstance(note, str) else note.text.format(*note.counts)
        for note in notes
        if isinstance(note, str) or note.always or note.counts[0]
    ]


def recorded(notes: Iterable[Note]) -> list[str | dict[str, Any]]:
    """The notes for a part's card, counts that are 0 among them."""
    return [note if isinstance(note, str) else asdict(note) for note in notes]


def together(parts: Sequence[Sequence[str | dict[str, Any]]]) -> list[str]:
    """The sentences of all parts' `recorded` notes: each note once, its numbers added up.

    Raises:
        ValueError: the parts have other notes.
    """
    notes: list[Note] = []
    for several in zip(*parts, strict=True):
        first = several[0]
        if isinstance(first, str):
            if any(note != first for note in several):
                raise ValueError(first)
            notes.append(first)
            continue
        if any(isinstance(note, str) or note["text"] != first["text"] for note in several):
            raise ValueError(first["text"])
        counts = tuple(sum(numbers) for numbers in zip(*(note["counts"] for note in several), strict=True))
        notes.append(Counted(first["text"], counts, first["always"]))
    return said(notes)
