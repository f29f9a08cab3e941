"""Phantom folders from the command line: one institution or all, drawn only where they are not there already."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import pyarrow.parquet as pq

from data_prep.folder import altered
from data_prep.sources import phantom
from data_prep.study import SPLITS
from data_prep.tables import SourceError

ZERO_SHOT = "coast"  # kept for zero-shot evaluation: with institution `all` only its test split is drawn


def prepare_phantoms(
    out: Path, institution: str, seed: int, numbers: Mapping[str, int], image_size: int | None, force: bool
) -> None:
    """Draw `institution` into `out`, or, for `all`, each institution into `out`/phantom_<institution>.

    Args:
        numbers: studies per split where not the default.
        image_size: pixels; None: the phantom's default.

    Raises:
        SourceError, StudyError: an unknown institution, an impossible number, a folder that holds something else.
    """
    one_size = {"image_size": image_size} if image_size is not None else {}
    jobs = []
    for name in phantom.INSTITUTIONS if institution == "all" else [institution]:
        folder = out / f"phantom_{name}" if institution == "all" else out
        default = phantom.DEFAULT_STUDIES.get(name, {})
        if institution == "all" and name == ZERO_SHOT:
            default = {"test": default["test"]}
        number = {split: numbers.get(split, default.get(split, 0)) for split in SPLITS}
        if not force and _is_done(folder, name, seed, number, image_size):
            print(f"{folder} is already drawn with these options; nothing to do (--force redoes it)")
        else:
            jobs.append((folder, name, seed, number, one_size))
    if len(jobs) < 2:
        for job in jobs:
            _draw(*job)
    else:
        with ProcessPoolExecutor(min(len(jobs), _cores()), mp_context=get_context("spawn")) as pool:
            for future in [pool.submit(_draw, *job) for job in jobs]:
                future.result()
    for folder, *_ in jobs:
        print(f"{folder}: drawn")


def _draw(folder: Path, name: str, seed: int, number: dict[str, int], one_size: dict[str, int]) -> None:
    phantom.prepare(folder, name, seed, number, **one_size)


def _is_done(folder: Path, institution: str, seed: int, number: Mapping[str, int], image_size: int | None) -> bool:
    """Whether `folder` is what would be drawn.

    Raises:
        SourceError: it was drawn with other options.
    """
    path = folder / "card.json"
    if not path.is_file():
        return False
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        found = {
            "dataset": card["dataset"],
            "seed": card["seed"],
            "number": {split: card["splits"][split]["studies"] for split in SPLITS},
            "difficulty": card["difficulty"],
            "style": card["style"],
            **({"image_size": card["image_size"]} if image_size is not None else {}),
        }
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SourceError(f"{path}: not a phantom's card; choose another --out or --force") from error
    if institution not in phantom.INSTITUTIONS:
        return False  # `phantom.prepare` says which there are
    wanted = {
        "dataset": f"phantom_{institution}",
        "seed": seed,
        "number": dict(number),
        "difficulty": asdict(phantom.PhantomDifficulty()),
        "style": asdict(phantom.INSTITUTIONS[institution]),
        **({"image_size": image_size} if image_size is not None else {}),
    }
    wanted = json.loads(json.dumps(wanted))  # tuples as lists, as the card has them
    if differs := [key for key in wanted if wanted[key] != found[key]]:
        raise SourceError(
            f"{folder} was drawn with other {' and '.join(differs)}; replace it with --force or choose another --out"
        )
    others = altered(folder) or [image for image in _images(folder) if not _has_bytes(folder / image)]
    if others:
        print(f"{folder}: {', '.join(others[:3])}{', …' if others[3:] else ''} not as drawn; drawn again")
    return not others


def _images(folder: Path) -> list[str]:
    tables = (pq.read_table(folder / f"{split}.parquet", columns=["image"]) for split in SPLITS)
    return [name for table in tables for name in table.column("image").to_pylist()]


def _has_bytes(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _cores() -> int:
    from data_prep.__main__ import available_cores

    return available_cores()
