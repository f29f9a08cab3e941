"""The parts that `--shard i/n` made into one prepared folder, the same to the byte as one made in one go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep import prepare as preparing
from data_prep.folder import CARD, altered, changed, parts_of, read_images, write_images
from data_prep.parts import together
from data_prep.priors import none
from data_prep.source import read_json
from data_prep.study import STUDY_SCHEMA, table_paths
from data_prep.tables import SourceError, one_line
from data_prep.texts import BATCH, KEPT, Texts


def merge_shards(folder: Path, force: bool = False) -> None:
    """Join `folder`/shards/<i>-of-<n> into `folder`. The images lie in `folder`/images already.

    Raises:
        SourceError: a part is missing, unfinished or made otherwise than the first; or `folder` is already merged.
    """
    parts = sorted(parts_of(folder), key=lambda path: int(path.name.split("-")[0]))
    if not parts:
        raise SourceError(f"{folder}/shards: no parts found; make them with --shard I/N --out {folder}")
    count = int(parts[0].name.split("-of-")[1])
    if missing := [
        f"{i}/{count}" for i in range(1, count + 1) if not (folder / "shards" / f"{i}-of-{count}" / CARD).is_file()
    ]:
        raise SourceError(f"{folder}/shards: part(s) {', '.join(missing)} not finished; run them with --shard")
    if len(parts) != count:
        raise SourceError(f"{folder}/shards: {len(parts)} parts for {count}; remove those of an earlier run")
    cards = [read_json(part / CARD, dict) for part in parts]
    made_from = [{**card["made_from"], "shard": None} for card in cards]
    for part, made in zip(parts, made_from, strict=True):
        if made != made_from[0]:
            differs = [key for key in made if made[key] != made_from[0].get(key)]
            raise SourceError(
                f"{part}: made from other {' and '.join(differs)} than {parts[0].name}; make it again with --force"
            )
    try:
        notes = together([card[preparing.COUNTED] for card in cards])
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{folder}/shards: the parts' cards do not fit together; make them again with --force"
        ) from error
    images = pa.concat_tables([read_images(part) for part in parts]).sort_by("image")
    if not force and (folder / CARD).is_file() and read_images(folder).equals(images) and not altered(folder):
        print(f"{folder} is already merged; nothing to do (--force merges again)")
        return
    texts = Texts()
    studies = pd.concat(
        [frame for part in parts for path in table_paths(part) for frame in _studies(path, texts)],
        ignore_index=True,
    )
    if not len(studies):
        raise SourceError(f"{folder}: no part has a usable study; see the parts' rejects.parquet")
    if (repeated := studies.duplicated("study_id")).any():
        raise SourceError(
            f"{folder}: study {studies['study_id'][repeated].iloc[0]} is in two parts; make them again with --force"
        )
    prior = pd.Index(studies["study_id"]).get_indexer(studies["prior_study_id"])
    studies["prior_text"] = np.where(prior < 0, 0, studies["text"].to_numpy()[prior])
    rejects = pd.concat([pq.read_table(part / "rejects.parquet").to_pandas() for part in parts], ignore_index=True)
    rejects = rejects.assign(**{name: none(rejects[name]) for name in rejects})
    if gone := changed(images, folder, None):
        raise SourceError(
            f"{folder}: {len(gone)} image(s) missing or not as their part wrote them, for one {gone[0]}; copy every part's "
            f"images into {folder}/images"
        )
    about = {key: cards[0][key] for key in preparing.ABOUT} | {"notes": notes}
    count = about["validation_studies"]
    studies = preparing.set_aside(studies, count, made_from[0]["options"]["seed"], about["notes"])
    write_images(images, folder)
    preparing.write_tables(studies, texts, rejects, folder, folder, made_from[0], about)
    print(f"{folder}: {len(studies):,} studies of {len(parts)} parts merged")


def _studies(path: Path, texts: Texts) -> Iterator[pd.DataFrame]:
    """A part's studies, some thousand at a time; their reports go to `texts`."""
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH, columns=[n for n in STUDY_SCHEMA.names if n != "prior_report"]):
                frame = batch.drop_columns(list(KEPT)).to_pandas()
                # The table holds 32 bits; the shortest number that they write down is the one that they were made from.
                frame["age"] = [float(str(age)) for age in frame["age"].to_numpy()]
                yield frame.join(texts.add(batch.select(list(KEPT)).to_pylist()))
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"{path}: not a readable study table ({one_line(error)}); make the part again with --force"
        ) from error
