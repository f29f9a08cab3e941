"""All key images by all cores: resumable, with a limit on the time and memory that one film may take. Whatever happens to a
process while it decodes a film is that film's reject; only an image that cannot be written stops the run."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from data_prep.dicom import compressed
from data_prep.images import (
    BROKEN,
    ImageError,
    ImageJob,
    ImageRecord,
    ImageSettings,
    is_done,
    prepare_image,
    read_image_file,
    source_state,
)

CHUNK = 16  # images a worker takes at a time
FEW = 32  # below this, starting workers costs more than they save
# Our choice, ten times what the largest films take (0.5 s, 0.4 GiB).
SECONDS_A_FILM = 60
MEMORY_A_FILM = 4 << 30
DEATHS = 5  # workers that die one after another, each with another film: it is not the films

Job = tuple[ImageJob, ImageRecord | None]  # with what an earlier run recorded of it
Done = list[tuple[str, ImageRecord]]  # target → what became of it


class WorkerError(RuntimeError):
    """Image workers die whatever they are given."""


def prepare_images(
    jobs: Iterable[ImageJob],
    settings: ImageSettings,
    workers: int,
    progress: Any = None,
    known: Callable[[ImageJob], ImageRecord | None] = lambda job: None,
    note: Callable[[Done], None] = lambda done: None,
) -> dict[str, ImageRecord]:
    """Prepare all images that are not done already.

    Args:
        workers: processes.
        progress: an object with `update(n)`, as tqdm's.
        known: what an earlier run recorded of an image; it is done where `images.is_done` says so.
        note: called with what became of some images, so that an interrupted run can resume.

    Returns:
        The images that failed: target → why.

    Raises:
        WorkerError: workers die whatever they are given.
        OSError: a target cannot be written.
    """
    failures: dict[str, ImageRecord] = {}

    def collect(done: Done) -> None:
        failures.update((target, record) for target, record in done if record.problem)
        note(done)
        if progress is not None:
            progress.update(len(done))

    queue: Iterator[Job] = ((job, known(job)) for job in jobs)
    first = list(islice(queue, FEW))
    suspects: list[Job] = []
    if workers <= 1 or len(first) < FEW:
        for job in chain(first, queue):
            done, left = _prepare_chunk([job], settings, careful=True)
            collect(done)
            suspects += left
    else:
        suspects = _by_all_cores(_chunks(chain(first, queue)), settings, workers, collect)
    _one_by_one(suspects, settings, collect)
    return failures


def _by_all_cores(
    chunks: Iterator[Sequence[Job]], settings: ImageSettings, workers: int, collect: Callable[[Done], None]
) -> list[Job]:
    """Prepare `chunks`; the jobs that were under way when a worker died."""
    suspects: list[Job] = []
    deaths = 0
    begun = next(chunks, None)
    while begun is not None:
        chunks = chain([begun], chunks)
        pending: dict[Future, Sequence[Job]] = {}
        with _pool(workers) as pool:
            try:
                # A bounded window of work, so that memory does not grow with the number of studies.
                for chunk in islice(chunks, 4 * workers):
                    pending[pool.submit(_prepare_chunk, chunk, settings)] = chunk
                while pending:
                    for future in wait(pending, return_when=FIRST_COMPLETED).done:
                        collect(future.result()[0])
                        del pending[future]
                        deaths = 0
                    for chunk in islice(chunks, 4 * workers - len(pending)):
                        pending[pool.submit(_prepare_chunk, chunk, settings)] = chunk
            except BrokenProcessPool as error:
                deaths += 1
                if deaths >= DEATHS:
                    raise WorkerError(_DYING) from error
                for future, chunk in pending.items():
                    if future.done() and future.exception() is None:
                        collect(future.result()[0])
                    else:
                        suspects += chunk
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        begun = next(chunks, None)
    return suspects


_DYING = (
    "image workers die whatever film they are given, most likely for want of memory; run the same command again with fewer "
    "--workers (finished images are kept)"
)


def _one_by_one(jobs: Sequence[Job], settings: ImageSettings, collect: Callable[[Done], None]) -> None:
    """Prepare `jobs` in one process of their own, a new one after each film that it died of."""
    left, deaths = list(jobs), 0
    while left:
        with _pool(1) as pool:
            try:
                while left:
                    collect(pool.submit(_prepare_chunk, left[:1], settings).result()[0])
                    del left[0]
                    deaths = 0
            except BrokenProcessPool as error:
                deaths += 1
                if deaths >= DEATHS:
                    raise WorkerError(_DYING) from error
                job, _ = left.pop(0)
                state = source_state(job.source)
                detail = (
                    f"its decoder crashed, or took more than {SECONDS_A_FILM} s or {MEMORY_A_FILM >> 30} GiB of memory"
                )
                record = ImageRecord(*(state or (None, None)), problem=BROKEN, detail=detail)
                collect([(job.target, record)])
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def _pool(workers: int) -> ProcessPoolExecutor:
    # spawn: forking a process that has threads (Arrow has) can deadlock.
    return ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker)


_film_begun: float | None = None  # when this process began the film that it is at


def _begin_worker() -> None:
    # Ctrl-C and SIGTERM are for the main process to handle; this one leaves with it, however it ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    threading.Thread(target=_leave_after_a_film_too_long, daemon=True).start()
    if sys.platform == "linux":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        with suppress(ValueError):  # a lower limit is set already
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_A_FILM, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _leave_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _leave_after_a_film_too_long() -> None:
    while True:
        time.sleep(1)
        if _film_begun is not None and time.monotonic() - _film_begun > SECONDS_A_FILM:
            os._exit(1)  # a decoder in C hears no exception; the main process makes the film a reject


def _chunks(jobs: Iterator[Job]) -> Iterator[Sequence[Job]]:
    while chunk := list(islice(jobs, CHUNK)):
        yield chunk


def _prepare_chunk(jobs: Sequence[Job], settings: ImageSettings, careful: bool = False) -> tuple[Done, list[Job]]:
    """What became of each image; and, with `careful` (in the main process), those whose decoder could take the process
    along."""
    global _film_begun
    done, left = [], []
    for job, record in jobs:
        if record is not None and is_done(job, record):
            done.append((job.target, record))
            continue
        _film_begun = time.monotonic()
        content, modified = None, source_state(job.source)
        try:
            content = read_image_file(job.source)
            if careful and compressed(content):
                left.append((job, record))
                continue
            done.append((job.target, prepare_image(job, settings, content)))
        except ImageError as error:
            if record is not None:  # the image of what the source was
                Path(job.target).unlink(missing_ok=True)
            failed = ImageRecord(
                *(modified or (None, None)),
                source_crc32=None if content is None else zlib.crc32(content),
                problem=error.kind,
                detail=str(error),
            )
            done.append((job.target, failed))
        finally:
            _film_begun = None
    return done, left
