"""Is a prepared folder what it should be: schema, images, priors, no leakage, counts as on its card."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from data_prep.folder import IMAGES, altered, changed, read_images
from data_prep.images import DECODE_ERRORS
from data_prep.source import inside
from data_prep.splits import check_leakage, frame_of
from data_prep.study import StudyError, check_studies, report_text, table_paths


def check_folder(folder: Path, sources: Path | None = None) -> str:
    """One line on what was checked.

    Args:
        sources: the image folder that it was made from: each source is then compared, too.

    Raises:
        StudyError, LeakageError, SourceError: the first thing that is wrong and, of images, how many.
    """
    if not folder.is_dir():
        raise StudyError(f"{folder}: no such folder; {_prepared_beside(folder)}")
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StudyError(f"{folder}/card.json: missing or damaged ({error}); prepare the data again") from error
    frames = []
    for path in table_paths(folder):
        split = path.stem
        table = _read(path)
        check_studies(table, str(path))
        frame = frame_of(table)
        if (wrong := frame["split"] != split).any():
            raise StudyError(
                f"{path}: study {frame.loc[wrong, 'study_id'].iloc[0]} says it is {frame.loc[wrong, 'split'].iloc[0]}"
            )
        if (expected := card["splits"][split]["studies"]) != len(frame):
            raise StudyError(f"{path}: {len(frame)} studies, but the card says {expected}; prepare the data again")
        frames.append(frame)
    studies = pd.concat(frames, ignore_index=True)
    check_leakage(studies, str(folder))
    _check_prior_reports(studies, folder)
    rejects = _read(folder / "rejects.parquet").num_rows
    if "found" in card and card["found"] != len(studies) + rejects:
        raise StudyError(f"{folder}: {card['found']} studies found, but {len(studies)} kept and {rejects} rejected")
    images = check_images(studies, folder, card)
    compared = check_records(studies, folder, sources)
    if others := altered(folder):
        raise StudyError(f"{folder}: {', '.join(others)} not as the card has it; run the same preparation again")
    linked = int(studies["prior_study_id"].notna().sum())
    return (
        f"{folder}: good: {len(studies):,} studies, {rejects:,} rejects, {images:,} images{compared}, {linked:,} priors, no "
        "leakage"
    )


def check_records(studies: pd.DataFrame, folder: Path, sources: Path | None) -> str:
    """Compare each image with the folder's record of what was written for its study and, with `sources`, from what; empty
    where the folder has no such record (phantoms, whose films have no source).

    Raises:
        StudyError: one is another.
    """
    if not (folder / IMAGES).is_file():
        return ""
    images = read_images(folder)
    if without := sorted(set(studies["image"]) - set(images.column("image").to_pylist())):
        raise StudyError(f"{folder}: {len(without)} image(s) that {IMAGES} does not name, for one {without[0]}")
    others = changed(images, folder, sources, contents=True)
    if others:
        raise StudyError(
            f"{folder}: {len(others)} image(s) are not what was made for their study{' from this source' if sources else ''}, "
            f"for one {others[0]}; run the same preparation again"
        )
    return " as they were made" + (" from these sources" if sources else "")


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise StudyError(f"{path}: missing or not a readable Parquet file; prepare the data again") from error


def _check_prior_reports(studies: pd.DataFrame, folder: Path) -> None:
    by_id = studies.set_index(["dataset", "study_id"])
    current = studies[studies["prior_study_id"].notna()]
    prior = by_id.loc[pd.MultiIndex.from_frame(current[["dataset", "prior_study_id"]])]
    for study_id, given, findings, impression in zip(
        current["study_id"], current["prior_report"], prior["findings"], prior["impression"], strict=True
    ):
        if given != report_text(findings, impression):
            raise StudyError(
                f"{folder}: study {study_id}: prior_report is not its prior's report; prepare the data again"
            )


def _prepared_beside(folder: Path) -> str:
    """What is prepared in the folder's own folder, for one that is not there."""
    names = sorted(card.parent.name for card in folder.parent.glob("*/card.json"))
    if names:
        return f"{folder.parent} has {', '.join(names)}"
    return f"{folder.parent} has no prepared data set yet (make data DATASET={folder.name} SOURCE=/path/to/it)"


def check_images(studies: pd.DataFrame, folder: Path, card: dict) -> int:
    """The number of images, each of which opens whole, is 8-bit grey, and has a size that the card's options allow.

    Raises:
        StudyError: one is not so; how many are not.
    """
    options = card.get("made_from", {}).get("options", {})
    size, mode = options.get("image_size") or card.get("image_size"), options.get("image_mode", "longest")
    paths = sorted(set(studies["image"]))

    def problem(path: str) -> str | None:
        if inside(path) != path:
            return f"{path}: leaves the folder"
        try:
            with Image.open(folder / path) as image:
                image.load()
                if image.mode != "L":
                    return f"{path}: mode {image.mode}, expected 8-bit grey"
                wrong = max(image.size) > size if mode == "longest" else image.size != (size, size)
                return f"{path}: {image.width}×{image.height}, expected {mode} {size}" if wrong else None
        except FileNotFoundError:
            return f"{path}: missing"
        except DECODE_ERRORS as error:
            return f"{path}: cannot be read ({type(error).__name__})"

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside the interpreter lock
        checked = pool.map(problem, paths)
        problems = [p for p in tqdm(checked, total=len(paths), desc="checking images", unit="image") if p]
    if problems:
        raise StudyError(
            f"{folder}: {len(problems)} bad image(s), for one {problems[0]}; prepare the data again with --force"
        )
    return len(paths)
