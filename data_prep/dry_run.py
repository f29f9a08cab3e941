"""What preparation would make, without writing it."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from pathlib import Path

from data_prep.images import (
    ImageError,
    ImageSettings,
    load_grey,
    resize,
)
from data_prep.parts import said
from data_prep.prepare import check_options, images_there, read_source, select
from data_prep.source import Options, fingerprint
from data_prep.sources import SOURCES


def dry_run(source: Path, out: Path, options: Options, workers: int, say: Callable[[str], None] = print) -> None:
    """Read a sample of the source and say what a run would do; nothing is written."""
    check_options(source, options)
    module = importlib.import_module(SOURCES[options.dataset])
    files = module.inputs(source, options)
    say(f"would read {len(files)} index file(s): {', '.join(fingerprint(files, source))}")
    found = read_source(module, source, options)
    studies, rejects, notes = select(found, options)
    images_there(studies, found.images)
    say(f"sample of {len(studies) + len(rejects):,} studies: {len(studies):,} usable, {len(rejects):,} not")
    for reason, number in rejects["reason"].value_counts().items():
        say(f"  {number:,} {reason}")
    for split, number in studies["split"].value_counts().items():
        say(f"  {number:,} {split}")
    settings = ImageSettings(options.image_size, options.image_mode, options.image_format)
    failed, begin, done = 0, time.perf_counter(), 0
    for path in studies["image_source"].iloc[:: max(1, len(studies) // 16)]:
        try:
            resize(load_grey(found.images / path, settings), settings)
        except ImageError as error:
            failed += 1
            say(f"  {path}: {error}")
        done += 1
    each = (time.perf_counter() - begin) / max(done, 1)
    say(
        f"{done} images tried, {failed} failed; {1000 * each:.0f} ms each: {workers / each:,.0f} a second with {workers} workers"
    )
    for note in said(notes):
        say(f"note: {note}")
    say(
        f"would write {out}/{{train,validation,test}}.parquet, images/, rejects.parquet, card.json, card.md; wrote nothing"
    )
