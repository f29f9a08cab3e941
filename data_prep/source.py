"""What every source gives: the studies found on disk, what could not be used, and what was read to know it."""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from data_prep.parts import Note, Shard
from data_prep.rejects import empty_rejects
from data_prep.tables import SourceError, one_line, without_surrogates
from data_prep.texts import BATCH, TEXT_COLUMNS, Texts

# One row per study that has a report and a frontal image. `image_source` is the key image's path below `Found.images`; of
# the report, only where its sections lie in `Found.texts` and how long they are. `order` sorts a patient's studies in time
# where the source has no date-time (null: `study_datetime` does).
FOUND_COLUMNS = (
    "study_id",
    "patient_id",
    "dataset",
    "split",
    "view",
    "image_source",
    *TEXT_COLUMNS,
    "study_datetime",
    "order",
    "sex",
    "age",
    "race",
)


# What reading a damaged, encrypted or unusual member of an archive raises.
ARCHIVE_ERRORS = (
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
LONGEST_ENTRY = 1 << 26  # characters of one entry of a JSON file; a longer one is a file that was cut or another thing


@dataclass(frozen=True)
class Options:
    """What a user can choose. Paths are not part of a card; their contents are, by fingerprint.

    Args:
        dataset: name of the source (`mimic`, `chexpert_plus`, …).
        name: value of the table's `dataset` column; the source's own name unless the user gives one.
        image_size: pixels, 16 or more.
        image_mode: `stretch` (square, aspect lost: the paper's "resized to a resolution of 512×512 pixels"), `letterbox`
            (black bars to a square) or `longest` (longest side at most `image_size`, aspect kept, never enlarged).
        image_format: `jpg` (quality 95) or `png`.
        seed: of every random choice.
        validation_studies: studies set aside from training, by patient; None: the source's default.
        priors: whether prior studies are linked; None: the source's default.
        images: the image folder, where it is not below the source folder.
        own_validation: keep the source's own validation studies for validation (IU X-ray, which else trains on them).
        rexrank: ReXrank test files: what they list is `test`, and nothing of their patients is trained on.
        reports, mimic_iv, mapping, assume_first_frontal: see the sources that use them.
        sample: read about so many studies only (dry run); None: all.
        part: read the reports of this part's patients only; None: of all.
    """

    dataset: str
    name: str = ""
    image_size: int = 512
    image_mode: str = "stretch"
    image_format: str = "jpg"
    seed: int = 0
    validation_studies: int | None = None
    priors: bool | None = None
    images: Path | None = None
    reports: Path | None = None
    mimic_iv: Path | None = None
    mapping: Path | None = None
    assume_first_frontal: bool = False
    own_validation: bool = False
    rexrank: tuple[Path, ...] = ()
    sample: int | None = None
    part: Shard | None = None

    def mine(self, patient: object) -> bool:
        """Whether the patient's reports are to be read."""
        return self.part is None or self.part.has(patient)

    def own(self, studies: pd.DataFrame) -> pd.DataFrame:
        """The rows of `studies` (column patient_id; where that is null, study_id) that belong to this part."""
        if self.part is None:
            return studies
        patients = studies["patient_id"].where(studies["patient_id"].notna(), studies["study_id"])
        return studies[self.part.holds(patients)].reset_index(drop=True)

    def recorded(self) -> dict[str, Any]:
        """The options that decide what is written, as the card records them (no path: they differ by machine)."""
        return {
            "name": self.name,
            "image_size": self.image_size,
            "image_mode": self.image_mode,
            "image_format": self.image_format,
            "seed": self.seed,
            "validation_studies": self.validation_studies,
            "priors": self.priors,
            "assume_first_frontal": self.assume_first_frontal,
            "own_validation": self.own_validation,
        }


@dataclass
class Found:
    """The studies of one source.

    Args:
        studies: columns FOUND_COLUMNS, one row per usable study, any order.
        texts: the reports of `studies`.
        rejects: columns of `rejects.REJECTS_SCHEMA`, one row per study that is not usable.
        images: the folder that `image_source` is relative to.
        notes: sentences for the data card: choices, caveats of the source.
        unknown_words: column of the study table → word of the source that is not known, so that the value is null → how often.
        title, licence: for the data card.
        credentialed: the licence or the origin forbids sending texts to third parties.
        validation_studies, priors: the source's defaults for the options of the same name.
        dated: study_datetime and order by study id, of every study of the source's index, rejected ones too.
        test_image: path of an image in a ReXrank test file → its path below `images`; None where it has none.
        index: patient_id, split and image_source of the whole source's studies, where `studies` are a part's.
        test_file: the ReXrank test file whose studies are `test`, as `rexrank.recorded` names it; None: not one.
    """

    studies: pd.DataFrame
    texts: Texts
    images: Path
    title: str
    licence: str
    credentialed: bool
    rejects: pd.DataFrame = field(default_factory=empty_rejects)
    notes: list[Note] = field(default_factory=list)
    unknown_words: dict[str, dict[str, int]] = field(default_factory=dict)
    validation_studies: int = 0
    priors: bool = True
    dated: pd.DataFrame | None = None
    test_image: Callable[[str], str | None] | None = None
    test_file: dict[str, Any] | None = None
    index: pd.DataFrame | None = None


def found_frame(
    rows: Iterable[Mapping[str, Any]], dataset: str, texts: Texts, mine: Callable[[object], bool] = lambda patient: True
) -> pd.DataFrame:
    """Rows (mappings, sections among their keys; absent keys become null) as a frame with FOUND_COLUMNS; the sections of
    patients who are `mine` go to `texts`."""
    names = [name for name in FOUND_COLUMNS if name not in TEXT_COLUMNS]
    rows, frames = iter(rows), []
    while (batch := list(islice(rows, BATCH))) or not frames:
        own = [row if mine(row.get("patient_id")) else None for row in batch]
        frame = pd.DataFrame([{name: row.get(name) for name in names} for row in batch], columns=names, dtype=object)
        frames.append(compact(frame.assign(dataset=dataset)).join(texts.add(own)))
    return pd.concat(frames, ignore_index=True)[list(FOUND_COLUMNS)]


def compact(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with its columns of words held by Arrow, which takes a fifth of what Python's strings do."""
    words = ("study_id", "patient_id", "dataset", "split", "view", "image_source", "sex", "race")
    return frame.astype({name: "str" for name in words if name in frame})


def blank_to_none(text: str | None) -> str | None:
    """`text` without white space at its ends; None where nothing is left or nothing was there."""
    if text is None or text != text:  # NaN
        return None
    return text.strip() or None


def find_one(root: Path, patterns: Sequence[str], what: str, hint: str = "") -> Path:
    """The first file below `root` that matches one of the glob `patterns`, in their order.

    Raises:
        SourceError: none matches.
    """
    if (found := find_optional(root, patterns)) is None:
        raise SourceError(f"{root}: {what} not found (expected {' or '.join(patterns)}){hint and '; ' + hint}")
    return found


def find_optional(root: Path, patterns: Sequence[str]) -> Path | None:
    """As `find_one`, None where nothing matches."""
    for pattern in patterns:
        if matches := sorted(root.glob(pattern)):
            return matches[0]
    return None


def read_json(path: Path, kind: type) -> Any:
    """The JSON file's value, of type `kind` (dict or list). Bare NaN tokens become null.

    Raises:
        SourceError: unreadable, not JSON, or of another type.
    """
    try:
        # Public files hold bare NaN tokens, which Python's parser takes and strict ones refuse.
        text = path.read_text(encoding="utf-8-sig")
        value = without_surrogates(json.loads(text, parse_constant=lambda token: None), text)
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not a readable JSON file ({one_line(error)}); fetch it again") from error
    if not isinstance(value, kind):
        raise SourceError(f"{path}: expected a JSON {'object' if kind is dict else 'list'} at the top")
    return value


def require_keys(path: Path, found: Collection[str], wanted: Sequence[str], expected: str) -> None:
    """Raise `SourceError` where not one entry of a JSON file has a key: it was renamed, and every value would be lost."""
    if found and (missing := [key for key in wanted if key not in found]):
        raise SourceError(f"{path}: no entry has {' or '.join(missing)}; expected {expected} as it was published")


def iterate_json(path: Path) -> Iterator[tuple[str, Any]]:
    """Key and value of each entry of a JSON object, one at a time: a file of any size in a little memory. Bare NaN tokens
    become null.

    Raises:
        SourceError: unreadable, not JSON, or not an object.
    """
    decoder = json.JSONDecoder(parse_constant=lambda token: None)
    space = re.compile(r"\s*")
    try:
        with path.open(encoding="utf-8-sig") as file:
            text, at = "", 0

            def more() -> bool:
                nonlocal text, at
                block = file.read(1 << 20)
                text, at = text[at:] + block, 0
                return bool(block)

            def peek() -> str:
                """The next character that is no space; empty at the end."""
                nonlocal at
                while (at := space.match(text, at).end()) == len(text) and more():
                    pass
                return text[at : at + 1]

            def value() -> Any:
                nonlocal at
                while True:
                    peek()
                    try:
                        found, end = decoder.raw_decode(text, at)
                    except json.JSONDecodeError:
                        if len(text) - at > LONGEST_ENTRY or not more():
                            raise
                        continue
                    # A number may go on in the next block; what ends in a bracket or a quote is whole.
                    if end == len(text) and text[-1] not in '}]"' and more():
                        continue
                    found = without_surrogates(found, text[at:end])
                    at = end
                    return found

            def expect(character: str) -> None:
                nonlocal at
                if peek() != character:
                    raise json.JSONDecodeError(f"expected {character!r}", text, at)
                at += 1

            if peek() != "{":
                raise SourceError(f"{path}: expected a JSON object at the top")
            at += 1
            while peek() != "}":
                key = value()
                expect(":")
                yield key, value()
                if peek() != "}":
                    expect(",")
            at += 1
            if peek():
                raise json.JSONDecodeError("text after the object", text, at)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path}: not a readable JSON file ({one_line(error)}); fetch it again") from error


def iterate_archive(path: Path, suffix: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of each regular file in a zip or tar archive whose name ends in `suffix`; hidden ones (`._1.xml`, which
    a Mac adds) are left out. Nothing is unpacked.

    Raises:
        SourceError: the archive cannot be read.
    """
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if not info.is_dir() and info.filename.endswith(suffix) and not hidden(info.filename):
                        yield info.filename, archive.read(info)
        else:
            with tarfile.open(path) as archive:
                for member in archive:
                    if member.isfile() and member.name.endswith(suffix) and not hidden(member.name):
                        yield member.name, archive.extractfile(member).read()
    except (*ARCHIVE_ERRORS, tarfile.TarError) as error:
        raise SourceError(f"{path}: not a readable archive ({one_line(error)}); fetch it again") from error


def hidden(name: str) -> bool:
    """Whether a file's name begins with a dot: what a system keeps beside a file (`._1.xml`), never a study."""
    return PurePosixPath(name).name.startswith(".")


def inside(relative: str) -> str | None:
    """`relative` as a clean path below its root (leading slashes and dots dropped), or None where it leaves the root."""
    parts = [p for p in PurePosixPath(relative.replace("\\", "/")).parts if p not in ("/", ".")]
    if not parts or ".." in parts or ":" in parts[0] or "\0" in relative:
        return None
    return "/".join(parts)


@dataclass(frozen=True)
class Listing:
    """A folder of films, whose names and sizes alone are fingerprinted: the films themselves are terabytes."""

    path: Path


def fingerprint(paths: Sequence[Path | Listing], root: Path) -> dict[str, str]:
    """SHA-256 by path below `root` (by name where it lies elsewhere): of a file's content; of a folder, one over the
    names and contents (of a `Listing`, the sizes) of all its files."""
    digests = {}
    for listing in (path for path in paths if isinstance(path, Listing)):
        digest = hashlib.sha256()
        for file in sorted(p for p in listing.path.rglob("*") if p.is_file() and not hidden(p.name)):
            name = file.relative_to(listing.path).as_posix().encode(errors="surrogateescape")
            digest.update(name + b"\0" + str(file.stat().st_size).encode() + b"\0")
        digests[f"{listing.path.name or '.'}/ (names and sizes)"] = digest.hexdigest()
    for path in sorted(path for path in paths if not isinstance(path, Listing)):
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        if path.is_dir():
            digest = hashlib.sha256()
            for file in sorted(p for p in path.rglob("*") if p.is_file()):
                digest.update(file.relative_to(path).as_posix().encode() + b"\0" + _sha256(file))
            digests[f"{name}/"] = digest.hexdigest()
        else:
            digests[name] = _sha256(path).hex()
    return digests


def _sha256(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()
