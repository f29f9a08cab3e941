"""What a prepared folder's own records say: what made it, which files are ours, and what became of each image."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.images import ImageJob, ImageRecord, is_done
from data_prep.study import ALL_SPLITS, write_parquet
from data_prep.tables import SourceError, one_line
from foundation.files import remove_temporaries, sha256_of, write_text
from foundation.locks import NAME as LOCK

CARD = "card.json"
STARTED = ".preparing.json"  # what a run that has not finished is making; its finished images are kept
IMAGES = "images.parquet"  # what became of each image
JOURNAL = ".images.jsonl"  # the same, of a run that has not finished
PLOTS = ("section_lengths.png", "encounters.png", "age.png", "sample.png")
TABLES = tuple(f"{split}.parquet" for split in ALL_SPLITS)
RECORDED = (*TABLES, "rejects.parquet", "truth.parquet", IMAGES)  # whose size and sha256 the card holds
PRODUCTS = (*TABLES, "rejects.parquet", IMAGES, CARD, "card.md", STARTED, JOURNAL)

IMAGES_SCHEMA = pa.schema(
    [
        pa.field("image", pa.string(), nullable=False),  # path inside the prepared folder
        pa.field("source", pa.string(), nullable=False),  # path below the image folder
        pa.field("source_bytes", pa.int64()),
        pa.field("source_modified", pa.int64()),  # nanoseconds since 1970
        pa.field("source_crc32", pa.uint32()),
        pa.field("bytes", pa.int64()),
        pa.field("crc32", pa.uint32()),
        pa.field("mean", pa.float64()),  # of 255
        pa.field("deviation", pa.float64()),
        pa.field("problem", pa.string()),
        pa.field("detail", pa.string()),
    ]
)


def made_from_of(folder: Path) -> tuple[dict[str, Any], bool] | None:
    """What `folder` was made from, and whether it is whole; None where no record of ours is there.

    Raises:
        SourceError: a record is damaged.
    """
    for name in (CARD, STARTED):
        path = folder / name
        if not path.is_file():
            continue
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{path}: damaged ({one_line(error)}); prepare again with --force") from error
        made_from = record.get("made_from", record if name == STARTED else None) if isinstance(record, dict) else None
        if isinstance(made_from, dict) and {"dataset", "options", "inputs"} <= set(made_from):
            return made_from, name == CARD
    return None


def is_whole(out: Path, whole: Path, made_from: Mapping[str, Any], force: bool) -> bool:
    """Whether `out` is what this run would make; False where it is to be made, or gone on with.

    Args:
        whole: the folder that holds the images: `out` itself, or, of a part, the folder that holds `shards`.

    Raises:
        SourceError: a folder holds something else, and `force` was not given or would delete what is not ours.
    """
    if shared := made_from["shard"]:
        _check_beside(out, whole, made_from, force)
    if not out.exists():
        return False
    if not out.is_dir():
        raise SourceError(f"{out} is a file; choose a folder with --out")
    remove_temporaries(out, PRODUCTS)
    try:
        record = made_from_of(out)
    except SourceError:
        # Without its card a folder is ours where another table of ours is in it.
        if not (force and (_record_paths(out) or _image_column(out))):
            raise
        return False
    if record is None:
        if not shared and parts_of(out):
            if not force:
                raise SourceError(
                    f"{out} holds parts made with --shard; join them with merge, or replace them with --force"
                )
        elif _holds_anything(out):
            raise SourceError(f"{out} is not empty and holds no prepared data; choose another --out")
        return False
    if force:
        return False
    if record[0] != made_from:
        raise SourceError(
            f"{out} was made from other {differences(record[0], made_from)}; replace it with --force or choose another --out"
        )
    if not record[1]:
        return False
    if others := altered(out):
        print(f"{out}: {', '.join(others)} not as written; made again from the source, images that are whole stay")
    return not others


def recorded_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Bytes and sha256 of each table in `folder`, for its card."""
    paths = [path for name in RECORDED if (path := folder / name).is_file()]
    return {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in paths}


def altered(folder: Path) -> list[str]:
    """The tables in a whole folder that are gone or not as its card has them: cut short, edited, of another folder."""
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    noted = card.get("files", {})  # a card of before they were noted tells only which there must be
    needed = [*TABLES[:3], "rejects.parquet", *([IMAGES] if "made_from" in card else [])]
    found = [name for name in dict.fromkeys([*needed, *noted]) if not (folder / name).is_file()]
    for name, file in noted.items():
        path = folder / name
        if name not in found and (path.stat().st_size != file["bytes"] or sha256_of(path) != file["sha256"]):
            found.append(name)
    return found


def _check_beside(out: Path, whole: Path, made_from: Mapping[str, Any], force: bool) -> None:
    """A part shares its images' folder with the other parts: raise `SourceError` unless all are made from the same."""
    if not whole.exists():
        return
    if not whole.is_dir():
        raise SourceError(f"{whole} is a file; choose a folder with --out")
    parts = parts_of(whole)
    if not parts and made_from_of(whole) is None and _holds_anything(whole):
        raise SourceError(f"{whole} is not empty and holds no prepared data; choose another --out")
    for folder in (whole, *parts):
        if folder == out or (record := made_from_of(folder)) is None:
            continue
        other = record[0]
        count = str(other["shard"]).split("/")[-1] if other["shard"] else None
        same = {**other, "shard": None} == {**made_from, "shard": None}
        if same and (count is None or count == made_from["shard"].split("/")[-1]):
            continue
        if not force:
            differs = (
                differences({**other, "shard": None}, {**made_from, "shard": None}) if not same else "number of parts"
            )
            raise SourceError(
                f"{folder} was made from other {differs}, and its images lie in the same folder; replace it with --force or "
                "choose another --out"
            )
        clear(folder, whole, but_images=folder != whole)  # another part may have overwritten a part's images already


def _holds_anything(folder: Path) -> bool:
    return any(path.name != LOCK for path in folder.iterdir())


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Which keys differ."""
    return " and ".join(key for key in other if one.get(key) != other[key]) or "settings"


def parts_of(folder: Path) -> list[Path]:
    """The parts in `folder`/shards that have a record of ours."""
    found = []
    for path in sorted((folder / "shards").glob("*-of-*")):
        try:
            if made_from_of(path) is not None:
                found.append(path)
        except SourceError:  # a damaged record is one
            found.append(path)
    return found


def begin(out: Path, whole: Path, made_from: Mapping[str, Any], force: bool) -> None:
    """Make `out` ready: clear what was there under `force`; note what is being made, so that an interrupted run can resume."""
    if force and out.exists():
        for part in parts_of(out):
            clear(part, out)
        clear(out, whole)
    write_text(out / STARTED, json.dumps(made_from, indent=1))
    (out / CARD).unlink(missing_ok=True)  # only a whole folder has one
    for path in (whole / "images").glob("*/.*.tmp"):  # of a run that was killed
        path.unlink(missing_ok=True)


def clear(folder: Path, whole: Path, but_images: bool = False) -> None:
    """Delete what a record of ours in `folder` names, and nothing else: its tables and plots, and its images in `whole`.
    Folders go where they are empty and no link."""
    images = set() if but_images else _images_of(folder)
    for name in images:
        path = whole / name
        if name.startswith("images/") and ".." not in name:
            path.unlink(missing_ok=True)
    for name in PLOTS:
        (folder / "plots" / name).unlink(missing_ok=True)
    for name in PRODUCTS:
        (folder / name).unlink(missing_ok=True)
    emptied = {(whole / name).parent for name in images}
    for path in (*emptied, whole / "images", folder / "plots", *([folder, folder.parent] if folder != whole else [])):
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()


def _images_of(folder: Path) -> set[str]:
    try:
        return {*read_images(folder).column("image").to_pylist(), *_image_column(folder)}
    except SourceError:
        return _image_column(folder)


def _image_column(folder: Path) -> set[str]:
    """The images that the study tables name (of folders that an earlier version made)."""
    images: set[str] = set()
    for name in TABLES:
        try:
            images.update(pq.read_table(folder / name, columns=["image"]).column("image").to_pylist())
        except (OSError, pa.ArrowException, KeyError):  # not there, damaged, or another table
            continue
    return images


def _record_paths(folder: Path) -> list[Path]:
    return [path for name in (IMAGES, JOURNAL) if (path := folder / name).is_file()]


def read_images(folder: Path) -> pa.Table:
    """What became of each image (IMAGES_SCHEMA), by a finished run and, where there is one, by one that has not finished. A
    line that a kill has cut counts as not there.

    Raises:
        SourceError: the record is damaged.
    """
    tables = [IMAGES_SCHEMA.empty_table()]
    if (path := folder / IMAGES).is_file():
        try:
            tables.append(pq.read_table(path).select(IMAGES_SCHEMA.names).cast(IMAGES_SCHEMA))
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise SourceError(f"{path}: damaged ({one_line(error)}); prepare again with --force") from error
    if (path := folder / JOURNAL).is_file():
        with path.open(encoding="utf-8") as lines:
            while batch := list(islice(lines, 4096)):
                tables.append(pa.Table.from_pylist([*_rows(batch)], IMAGES_SCHEMA))
    table = pa.concat_tables(tables).combine_chunks()
    last = {image: row for row, image in enumerate(table.column("image").to_pylist())}
    return table if len(last) == len(table) else table.take(sorted(last.values()))


def _rows(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


class Known:
    """Image → what an earlier run recorded of it, from `read_images`' table."""

    def __init__(self, table: pa.Table):
        self._table = table
        self._rows = {image: row for row, image in enumerate(table.column("image").to_pylist())}

    def __call__(self, image: str, source: str) -> ImageRecord | None:
        """The record of `image`, if it was made from `source`."""
        row = self._rows.get(image)
        if row is None:
            return None
        values = self._table.slice(row, 1).to_pylist()[0]
        del values["image"]
        return ImageRecord(**values) if values.pop("source") == source else None


def append_images(file: IO[str], rows: Iterable[tuple[str, str, ImageRecord]]) -> None:
    """Write what became of images (image, source, record) to a journal, for a run that resumes later."""
    for image, source, record in rows:
        values = {name: value for name, value in asdict(record).items() if value is not None}
        file.write(json.dumps({"image": image, "source": source, **values}) + "\n")
    file.flush()


def write_images(table: pa.Table, folder: Path) -> None:
    """Write IMAGES, sorted by image; the journal ends."""
    write_parquet(table.sort_by("image"), folder / IMAGES)
    (folder / JOURNAL).unlink(missing_ok=True)


def changed(table: pa.Table, whole: Path, images: Path | None, contents: bool = False) -> list[str]:
    """The images that are not as they were written or, with `images`, whose source is another than when they were made.
    `contents`: by all their bytes, not their number alone."""

    def differs(row: dict[str, Any]) -> bool:
        image, source = row.pop("image"), row.pop("source")
        job = ImageJob("" if images is None else os.path.join(images, source), os.path.join(whole, image))
        return not is_done(job, ImageRecord(**row), contents)

    found = []
    with ThreadPoolExecutor(16) as pool:  # waits for the file system, not for a core
        for batch in table.to_batches(4096):
            rows = batch.to_pylist()
            if images is None:
                rows = [row for row in rows if row["problem"] is None]
            names = [row["image"] for row in rows]
            found += [name for name, yes in zip(names, pool.map(differs, rows), strict=True) if yes]
    return found
