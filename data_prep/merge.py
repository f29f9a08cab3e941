"""The parts that `--shard i/n` made into one prepared folder, the same to the byte as one made in one go."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from data_prep import prepare as preparing
from data_prep.priors import none
from data_prep.source import SourceError
from data_prep.splits import frame_of
from data_prep.study import SPLITS


def merge_shards(folder: Path, force: bool = False) -> None:
    """Join `folder`/shards/<i>-of-<n> into `folder`. The images lie in `folder`/images already.

    Raises:
        SourceError: a part is missing, unfinished or made otherwise than the first; or `folder` is already merged.
    """
    parts = sorted((folder / "shards").glob("*-of-*"), key=lambda path: int(path.name.split("-")[0]))
    if not parts:
        raise SourceError(f"{folder}/shards: no parts found; make them with --shard I/N --out {folder}")
    count = int(parts[0].name.split("-of-")[1])
    if missing := [
        f"{i}/{count}"
        for i in range(1, count + 1)
        if not (folder / "shards" / f"{i}-of-{count}" / preparing.CARD).is_file()
    ]:
        raise SourceError(f"{folder}/shards: part(s) {', '.join(missing)} not finished; run them with --shard")
    if len(parts) != count:
        raise SourceError(f"{folder}/shards: {len(parts)} parts for {count}; remove those of an earlier run")
    cards = [json.loads((part / preparing.CARD).read_text(encoding="utf-8")) for part in parts]
    made_from = [{**card["made_from"], "shard": None} for card in cards]
    for part, made in zip(parts, made_from, strict=True):
        if made != made_from[0]:
            differs = [key for key in made if made[key] != made_from[0].get(key)]
            raise SourceError(
                f"{part}: made from other {' and '.join(differs)} than {parts[0].name}; make it again with --force"
            )
    if (folder / preparing.CARD).is_file() and not force:
        print(f"{folder} is already merged; nothing to do (--force merges again)")
        return
    studies = pd.concat(
        [frame_of(pq.read_table(part / f"{split}.parquet")) for part in parts for split in SPLITS], ignore_index=True
    )
    rejects = pd.concat([pq.read_table(part / "rejects.parquet").to_pandas() for part in parts], ignore_index=True)
    rejects = rejects.assign(**{name: none(rejects[name]) for name in rejects})
    if gone := [path for path in studies["image"] if not (folder / path).is_file()]:
        raise SourceError(
            f"{folder}: {len(gone)} image(s) missing, for one {gone[0]}; copy every part's images into {folder}/images"
        )
    about = {key: cards[0][key] for key in ("title", "licence", "credentialed", "priors_linked", "notes")}
    preparing.write_tables(studies, rejects, folder, made_from[0], about)
    print(f"{folder}: {len(studies):,} studies of {count} parts merged")
