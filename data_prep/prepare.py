"""One source on disk in, one prepared folder out."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha1
from pathlib import Path
from types import ModuleType

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from data_prep import card as cards
from data_prep.folder import (
    JOURNAL,
    Known,
    append_images,
    begin,
    changed,
    is_whole,
    read_images,
    write_images,
)
from data_prep.image_pool import Done, WorkerError, prepare_images
from data_prep.images import (
    FLAT,
    FORMATS,
    MISSING,
    MODES,
    ImageJob,
    ImageRecord,
    ImageSettings,
)
from data_prep.parts import Counted, Note, Shard, recorded, said
from data_prep.priors import link_priors, none, without_priors
from data_prep.rejects import (
    IMAGE_FLAT,
    IMAGE_MISSING,
    IMAGE_UNREADABLE,
    NO_REPORT,
    PATH_OUTSIDE,
    reject_frame,
)
from data_prep.source import Found, Options, compact, fingerprint, inside
from data_prep.sources import SOURCES
from data_prep.splits import check_leakage, set_aside_validation
from data_prep.study import ALL_SPLITS, SPLITS
from data_prep.study_tables import write_tables
from data_prep.tables import SourceError
from data_prep.test_files import use_test_files, without_test_file
from data_prep.texts import give_back

# What a card says beside counts and what the folder was made from.
ABOUT = (
    "title",
    "licence",
    "credentialed",
    "priors_linked",
    "test_file",
    "notes",
    "unknown_words",
    "validation_studies",
)
COUNTED = "counted_notes"  # in a part's card: the notes with numbers, which `merge` adds up
IMAGE_REASONS = {MISSING: IMAGE_MISSING, FLAT: IMAGE_FLAT}


def prepare(
    source: Path,
    out: Path,
    options: Options,
    workers: int,
    shard: Shard | None = None,
    force: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Prepare `source` into the folder `out`: tables, images, rejects, card. Interrupted, it resumes where it stopped.

    Args:
        workers: image processes.
        shard: prepare this part only, into `out`/shards/<index>-of-<count>.
        force: redo what is done, and replace what other options made.
        say: where progress lines go.

    Raises:
        SourceError, LeakageError, StudyError: one line that says what is wrong and how to mend it.
    """
    check_options(source, options)
    options = replace(options, part=shard)
    pa.set_memory_pool(pa.system_memory_pool())  # which gives back what is freed, as Arrow's others do not at once
    module = importlib.import_module(SOURCES[options.dataset])
    whole = out  # images of all shards lie in one folder; a patient is in one shard, so none writes another's
    if shard:
        out = whole / "shards" / f"{shard.index}-of-{shard.count}"
    say(f"{options.dataset}: reading the index of {source}")
    made_from = {
        "format": cards.FORMAT,
        "dataset": options.dataset,
        "options": options.recorded(),
        "shard": f"{shard.index}/{shard.count}" if shard else None,
        "inputs": fingerprint([*module.inputs(source, options), *option_files(options)], source),
    }
    if is_whole(out, whole, made_from, force):
        again = changed(read_images(out), whole, options.images or source)
        if not again:
            say(f"{out} is already prepared with these options from this source; nothing to do (--force redoes it)")
            return
        say(
            f"{out}: {len(again):,} images or their sources have changed since (for one {again[0]}): these are done again"
        )
    found = read_source(module, source, options)
    give_back()
    studies, rejects, notes = select(found, options)
    found.studies = studies.iloc[:0]  # the selected ones stay; two such tables would be most of the memory
    give_back()
    index = found.index
    there = images_there(studies, found.images, index)
    notes.append(
        Counted(
            "{1:,} of {2:,} key images are in the image folder; the others are rejects.",
            (int((~there).sum()), int(there.sum()), len(there)),
        )
    )
    validation = 0 if options.sample else validation_count(found, options)
    # Before hours of work: can it be done? Which images of other parts are there is not looked up: `merge` sees it.
    set_aside(studies[there] if index is None else index, validation, options.seed, [])
    total = len(studies) + len(rejects)
    settings = ImageSettings(options.image_size, options.image_mode, options.image_format)

    begin(out, whole, made_from, force)
    say(
        f"{options.dataset}: {total:,} studies found, {len(studies):,} with a report and a frontal image; preparing images"
    )
    studies, image_rejects = make_images(studies, found.images, out, whole, settings, workers, options.dataset)
    rejects = pd.concat([rejects, image_rejects], ignore_index=True)
    if not shard:  # `merge` does it for parts
        studies = set_aside(studies, validation, options.seed, notes)
    finish(
        studies,
        rejects,
        out,
        whole,
        made_from,
        found,
        notes,
        options,
    )
    kept = ", ".join(
        f"{n:,} {split}" for split in ALL_SPLITS if (n := (studies["split"] == split).sum()) or split in SPLITS
    )
    if found.test_file and not shard and (got := (studies["split"] == "test").sum()) < found.test_file["studies"]:
        say(
            f"note: of the ReXrank file's {found.test_file['studies']:,} studies {got:,} could be prepared; rejects.parquet has the others"
        )
    say(f"{out}: {kept}; {len(rejects):,} rejected (see {out / 'card.md'} and rejects.parquet)")


def check_options(source: Path, options: Options) -> None:
    """Raise `SourceError` for an impossible option or a folder that is not there."""
    if options.image_mode not in MODES or options.image_format not in FORMATS or options.image_size < 16:
        raise SourceError(
            f"image mode must be one of {', '.join(MODES)}, format one of {', '.join(FORMATS)}, size 16 or more"
        )
    if options.seed < 0:
        raise SourceError(f"--seed is {options.seed}; it must be 0 or more")
    if options.dataset not in SOURCES:
        raise SourceError(f"unknown data set {options.dataset!r}; expected phantom or one of {', '.join(SOURCES)}")
    # What a report is called decides who may see it: private reports must not go by a public set's name.
    known = [name for name in SOURCES if name != "custom"]
    if options.name and (options.name.lower() in known or options.name.lower().startswith("phantom")):
        raise SourceError(
            f"--name {options.name} is the name of a public data set or of phantoms ({', '.join(known)}, phantom…), whose "
            "rules on who may see the reports are not yours; give your institution's own, such as our_hospital"
        )
    if options.name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", options.name):
        raise SourceError(f"--name {options.name!r}: give letters, digits, _ and - only, such as our_hospital")
    for path in (
        source,
        *option_files(options),
        *(p for p in (options.images, options.reports, options.mimic_iv) if p),
    ):
        if not path.exists():
            raise SourceError(f"{path}: no such file or folder")


def option_files(options: Options) -> list[Path]:
    """Files that options name and that decide what is found."""
    return [*options.rexrank, *([options.mapping] if options.mapping else [])]


def read_source(module: ModuleType, source: Path, options: Options) -> Found:
    """What the source's module finds, with the test set of a ReXrank file where one was given."""
    found = module.read(source, options)
    if options.part is not None and found.index is None:
        found.index = found.studies[["patient_id", "split", "image_source"]].reset_index(drop=True)
        found.studies = options.own(found.studies)
    if options.rexrank:
        return use_test_files(found, options)
    if note := without_test_file(options.dataset):
        found.notes.append(note)
    return found


def select(found: Found, options: Options) -> tuple[pd.DataFrame, pd.DataFrame, list[Note]]:
    """The studies to prepare, the rejects, and notes for the card: all the table work that needs no image.

    Raises:
        SourceError: a study appears twice, or nothing is left.
        LeakageError: the source's own split has a patient on two sides.
    """
    studies, rejects, notes = found.studies, [options.own(found.rejects)], list(found.notes)
    studies = compact(studies.sort_values("study_id", kind="stable").reset_index(drop=True))
    studies["dataset"] = options.name or studies["dataset"]
    ids = pd.concat([studies["study_id"], found.rejects["study_id"]])
    if ids.duplicated().any():
        raise SourceError(f"study {ids[ids.duplicated()].iloc[0]} appears twice in the source's index; expected once")

    empty = (studies["findings_words"] == 0) & (studies["impression_words"] == 0)
    rejects.append(reject_frame(studies[empty], NO_REPORT))
    studies = without(studies, empty)

    studies["image_source"] = pd.array([inside(path) for path in studies["image_source"]], dtype="str")
    outside = studies["image_source"].isna()
    rejects.append(reject_frame(studies[outside], PATH_OUTSIDE))
    studies = without(studies, outside)

    check_leakage(studies, options.dataset)
    if not len(studies) and options.part is None:
        reasons = pd.concat(rejects)["reason"].value_counts().to_dict()
        raise SourceError(f"{options.dataset}: no usable study in the source; rejected: {reasons}")
    return studies, pd.concat([r for r in rejects if len(r)] or rejects[:1], ignore_index=True), notes


def set_aside(studies: pd.DataFrame, count: int, seed: int, notes: list[Note]) -> pd.DataFrame:
    """`studies` that can be used, with `count` training studies, whole patients, for validation; a note says so."""
    if not count or not (studies["split"] == "train").any():
        return studies
    notes.append(f"{count:,} training studies set aside for validation by patient, seed {seed}.")
    return studies.assign(split=set_aside_validation(studies, count, seed))


def validation_count(found: Found, options: Options) -> int:
    """How many studies are set aside: as asked, else the source's default."""
    return found.validation_studies if options.validation_studies is None else options.validation_studies


def without(studies: pd.DataFrame, left_out: pd.Series) -> pd.DataFrame:
    """`studies` but those of the mask `left_out`; not copied where that is none."""
    return studies[~left_out].reset_index(drop=True) if left_out.any() else studies


def image_path(study_id: str, suffix: str) -> str:
    """Where a study's image lies in the prepared folder: images/<two hex digits>/<study id>.<suffix>."""
    digest = sha1(study_id.encode()).hexdigest()
    safe = study_id
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", study_id):
        safe = re.sub(r"[^A-Za-z0-9_-]", "_", study_id)[:80] + "-" + digest[:12]
    return f"images/{digest[:2]}/{safe}.{suffix}"


def images_there(studies: pd.DataFrame, images: Path, index: pd.DataFrame | None = None) -> pd.Series:
    """Whether each key image is in the image folder. `index`: of a part, all parts' studies.

    Raises:
        SourceError: none is: the folder is the wrong one.
    """
    root = os.fspath(images)

    def exists(path: str) -> bool:
        return os.path.exists(os.path.join(root, path))

    with ThreadPoolExecutor(16) as pool:  # waits for the file system, not for a core
        there = list(pool.map(exists, studies["image_source"]))
        sought = studies if index is None else index
        named = [] if index is None or any(there) else [inside(path) for path in none(index["image_source"]) if path]
        if len(sought) and not any(there) and not any(pool.map(exists, filter(None, named))):
            raise SourceError(
                f"{images}: none of {len(sought):,} images looked for is there (for one, {sought['image_source'].iloc[0]}); "
                "give --images DIR"
            )
    return pd.Series(there, index=studies.index, dtype=bool)


def make_images(
    studies: pd.DataFrame, images: Path, out: Path, whole: Path, settings: ImageSettings, workers: int, title: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write every study's image below `whole`, with a record of each in `out`; the studies that have one, with column `image`,
    and the rejects of the others."""
    paths = pd.array([image_path(study, settings.format) for study in studies["study_id"]], dtype="str")
    studies = studies.assign(image=paths)
    sources = dict(zip(studies["image"], studies["image_source"], strict=True))
    known = Known(read_images(out))
    below = f"{os.fspath(whole)}{os.sep}"
    jobs = (ImageJob(os.path.join(images, source), os.path.join(below, target)) for target, source in sources.items())

    def recorded(job: ImageJob) -> ImageRecord | None:
        image = job.target.removeprefix(below)
        return known(image, sources[image])

    def note(done: Done) -> None:
        images_done = ((target.removeprefix(below), record) for target, record in done)
        append_images(journal, ((image, sources[image], record) for image, record in images_done))

    try:
        with (
            tqdm(total=len(studies), desc=f"{title} images", unit="image", smoothing=0.05) as progress,
            (out / JOURNAL).open("a", encoding="utf-8") as journal,
        ):
            failures = prepare_images(jobs, settings, workers, progress, recorded, note)
    except WorkerError as error:
        raise SourceError(str(error)) from error
    except OSError as error:
        raise SourceError(
            f"cannot write images below {whole}: {error}; mend that and run the same command again"
        ) from error
    table = read_images(out)
    ours = pc.is_in(table.column("image"), value_set=pa.array(sources, pa.string()))
    write_images(table.filter(ours), out)  # without what an earlier run made of another source
    problems = [failures.get(os.path.join(below, path)) for path in studies["image"]]
    failed = pd.Series([problem is not None for problem in problems], index=studies.index, dtype=bool)
    broken = studies[failed]
    details = [problem.detail for problem in problems if problem]
    rejects = reject_frame(broken, IMAGE_UNREADABLE, details, broken["image_source"].to_numpy())
    rejects["reason"] = [IMAGE_REASONS.get(problem.problem, IMAGE_UNREADABLE) for problem in problems if problem]
    if len(studies) and failed.all() and out == whole:  # a part of a few films may have none that can be used
        raise SourceError(
            f"{title}: not one image could be used (for one, {rejects['file'].iloc[0]}: {rejects['detail'].iloc[0]})"
        )
    return without(studies, failed), rejects


def finish(
    studies: pd.DataFrame,
    rejects: pd.DataFrame,
    out: Path,
    whole: Path,
    made_from: dict,
    found: Found,
    notes: list[Note],
    options: Options,
) -> None:
    """Link priors and write the folder."""
    link = options.priors if options.priors is not None else found.priors
    known = (found.title, found.licence, found.credentialed, link, found.test_file, said(notes), found.unknown_words)
    about = dict(zip(ABOUT, (*known, validation_count(found, options)), strict=True))
    if options.part is not None:
        about[COUNTED] = recorded(notes)
    studies = (link_priors if link else without_priors)(studies.drop(columns="image_source")).drop(columns="order")
    write_tables(studies, found.texts, rejects, out, whole, made_from, about)
