"""Prepared data sets as a stage reads them: an Arrow table of studies, and images that are looked at once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, overload

import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from data_prep.mixture import read_mixture
from data_prep.study import StudyError
from foundation.files import write_json

# What prompts, reports and rewards are made of; the other columns are not kept in memory.
COLUMNS = (
    *("dataset", "study_id", "folder", "image", "prior_image"),
    *("findings", "impression", "indication", "comparison", "prior_report"),
)
CHECKED = ".images_checked.json"  # in a prepared folder: the state of its images when they were last found whole
THREADS = 32  # of a check: a network disk answers many at once
_BATCH = 20_000  # studies whose images are checked together


class Studies(Sequence[dict[str, Any]]):
    """Studies as dictionaries, each made when it is read: an Arrow table takes about 1 kB of text a study, dictionaries 15.

    Attributes:
        table: the columns of `COLUMNS`, a row a study.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return self.table.num_rows

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return self.table.take(list(range(len(self))[index])).to_pylist()
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.table.slice(index % len(self), 1).to_pylist()[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.table.to_batches(max_chunksize=1024):
            yield from batch.to_pylist()

    @property
    def sources(self) -> set[str]:
        """Names of the data sets that they come from."""
        return set(pc.unique(self.table.column("dataset")).to_pylist())


def load_studies(
    datasets: Sequence[str],
    data_dir: str | Path,
    split: str,
    weights: Sequence[float] = (),
    seed: int = 0,
) -> Studies:
    """The studies of one split of several prepared data sets, with `folder` (their prepared folder) added to each.

    Args:
        weights: multiple of each data set's size to take (1 = each study once; 0.5 = a random half; 2 = each twice).

    Raises:
        StudyError: no data set named.
        StudyError: a data set is missing, empty or broken, or there are not as many weights as data sets.
    """
    if not datasets:
        raise StudyError("no data set to train on; set datasets, e.g. datasets: [mimic, iu_xray]")
    folders = [Path(data_dir) / name for name in datasets]
    studies = Studies(read_mixture(folders, split, list(weights) or None, seed, COLUMNS))
    pa.default_memory_pool().release_unused()
    return studies


def check_images(studies: Studies, longitudinal: bool) -> None:
    """Raise `StudyError` for a missing or unreadable image: before training, not hours into it.

    Reads the first and the last bytes of each file, in threads, and notes in the prepared folder that all were whole: as
    long as study table and image folders stay as they are, they are not read again. One process is enough.
    """
    named = studies.table.select(["folder", "study_id", "image", "prior_image"])
    for folder in pc.unique(named.column("folder")).to_pylist():
        table = named.filter(pc.equal(named.column("folder"), folder))
        checked = Path(folder) / CHECKED
        state = _state(Path(folder), table, longitudinal)
        if _read_checked(checked) == state:
            continue
        shown = [chunk for column in _shown(table, longitudinal) for chunk in column.chunks]
        names = pc.unique(pa.chunked_array(shown, pa.string()).drop_null()).to_pylist()
        if broken := _broken_file(folder, names):
            name, what = broken
            shows = [pc.equal(pc.fill_null(column, ""), name) for column in _shown(table, longitudinal)]
            study = table.filter(shows[0] if len(shows) == 1 else pc.or_(*shows)).column("study_id")[0]
            raise StudyError(
                f"study {study}: {what}; prepare the data again with: make data DATASET={Path(folder).name} … FORCE=1"
            )
        try:
            write_json(checked, state)
        except OSError as error:
            print(f"{checked}: {error.strerror}; each start checks {len(names):,} images again", flush=True)


def _state(folder: Path, table: pa.Table, longitudinal: bool) -> dict[str, Any]:
    """What must stay the same for a check to hold: which images are shown, and when a file last came, went or was renamed."""
    digest = hashlib.sha256()
    for column in _shown(table, longitudinal):
        for buffer in (buffer for chunk in column.chunks for buffer in chunk.buffers() if buffer is not None):
            digest.update(buffer)
    images = [folder / "images", *sorted(path for path in (folder / "images").glob("*") if path.is_dir())]
    changed = {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in images if path.is_dir()}
    return {"images_sha256": digest.hexdigest(), "folders_changed": changed}


def _shown(table: pa.Table, longitudinal: bool) -> list[pa.ChunkedArray]:
    return [table.column(name) for name in ("image", "prior_image")[: 1 + longitudinal]]


def _read_checked(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None  # never checked, or its writing was cut short: checked now


def _broken_file(folder: str, names: Sequence[str]) -> tuple[str, str] | None:
    """The first of these images that is missing or is not whole, and what is wrong; None where all are whole."""
    with (
        ThreadPoolExecutor(THREADS) as threads,
        tqdm(total=len(names), desc="checking images", unit="image", disable=len(names) < _BATCH) as bar,
    ):
        for start in range(0, len(names), _BATCH):
            part = names[start : start + _BATCH]
            # A thread takes some hundred files at a time: handing over each costs more than reading it.
            pieces = [part[i : i + 256] for i in range(0, len(part), 256)]
            for found in threads.map(partial(_first_broken, folder), pieces):
                if found is not None:
                    return found
            bar.update(len(part))
    return None


def _first_broken(folder: str, names: Sequence[str]) -> tuple[str, str] | None:
    for name in names:
        path = os.path.join(folder, name)
        try:
            if not _is_whole(path):  # another format, bytes after the end, or cut short
                with PIL.Image.open(path) as image:
                    image.load()
        except FileNotFoundError:
            return name, f"image {path} is missing"
        except (OSError, SyntaxError) as error:  # PIL's own, a damaged PNG's among them
            return name, f"{path} cannot be read as an image ({type(error).__name__})"
    return None


def _is_whole(path: str) -> bool:
    """Whether a file begins and ends as a PNG or a JPEG does; a copy that was cut short does not."""
    file = os.open(path, os.O_RDONLY)
    try:
        start, size = os.read(file, 8), os.fstat(file).st_size
        end = os.pread(file, 8, max(size - 8, 0))
    finally:
        os.close(file)
    png = start == b"\x89PNG\r\n\x1a\n" and end == b"IEND\xaeB`\x82"
    return png or (start[:3] == b"\xff\xd8\xff" and end[-2:] == b"\xff\xd9")
