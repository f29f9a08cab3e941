"""Key images: decoded, made 8-bit grey and upright, resized, and written; by all cores, resumable.

Only Pillow and NumPy are imported here, so that worker processes start quickly.
"""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

MODES = ("longest", "letterbox", "stretch")
FORMATS = ("jpg", "png")
JPEG_QUALITY = 95  # our choice: a third of a PNG's bytes, no visible loss at this size
CHUNK = 16  # images a worker takes at a time
FEW = 32  # below this, starting workers costs more than they save

# What Pillow raises on a broken or hostile file.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, OverflowError, Image.DecompressionBombError)
ImageFile.LOAD_TRUNCATED_IMAGES = False  # a half image must be a reject, not a grey half


class ImageError(ValueError):
    """An image that cannot be used; `missing` tells an absent file from a broken one."""

    def __init__(self, message: str, missing: bool = False):
        super().__init__(message)
        self.missing = missing


class WorkerError(RuntimeError):
    """An image worker process died."""


@dataclass(frozen=True)
class ImageSettings:
    """Args: size: pixels; mode: one of MODES; format: one of FORMATS."""

    size: int = 512
    mode: str = "longest"
    format: str = "jpg"


@dataclass(frozen=True)
class ImageJob:
    """One image to prepare: absolute source and target paths."""

    source: str
    target: str


def target_size(width: int, height: int, settings: ImageSettings) -> tuple[int, int]:
    """Width and height of the scaled image, before any letterbox bars; never enlarged in mode `longest`."""
    if settings.mode == "stretch":
        return settings.size, settings.size
    scale = settings.size / max(width, height)
    if settings.mode == "longest":
        scale = min(scale, 1.0)
    return max(1, round(width * scale)), max(1, round(height * scale))


def load_grey(path: str | Path, settings: ImageSettings) -> Image.Image:
    """The image as upright 8-bit grey, decoded at a reduced scale where the format can (JPEG), not below its target size.

    Raises:
        ImageError: missing or unreadable.
    """
    path = Path(path)
    try:
        if path.suffix.lower() in (".dcm", ".dicom", ""):
            from data_prep.dicom import read_dicom

            return read_dicom(path)
        with Image.open(path) as image:
            # JPEG decodes at 1/2, 1/4 or 1/8 directly; never to less than the target size.
            image.draft("L", target_size(*image.size, settings))
            image.load()
            upright = ImageOps.exif_transpose(image)
            return to_grey(upright)
    except FileNotFoundError as error:
        raise ImageError("file not found", missing=True) from error
    except DECODE_ERRORS as error:
        raise ImageError(" ".join(f"{type(error).__name__}: {error}".replace(str(path), path.name).split())) from error


def to_grey(image: Image.Image) -> Image.Image:
    """8-bit grey of any Pillow image. Deeper images are scaled by their own minimum and maximum: 12-bit values are often
    stored in 16 bits, so the format's range says nothing."""
    if image.mode == "L":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(scale_to_8_bits(np.asarray(image)))
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        return image.convert("RGBA").convert("L")
    return image.convert("L")


def scale_to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """uint8 of any 2-D array, minimum to 0 and maximum to 255.

    Raises:
        ValueError: not 2-D, or not finite.
    """
    if pixels.ndim != 2:
        raise ValueError(f"expected one grey plane, found an array of shape {pixels.shape}")
    pixels = pixels.astype(np.float32)
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("pixel values are not finite")
    return np.rint((pixels - low) * (255.0 / max(high - low, 1e-6))).astype(np.uint8)


def resize(image: Image.Image, settings: ImageSettings) -> Image.Image:
    """The grey image at its target size; letterboxed with black where the mode says so."""
    size = target_size(*image.size, settings)
    if image.size != size:
        # Bicubic: as close to a full decode with Lanczos as Lanczos itself, and a millisecond cheaper.
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    if settings.mode == "letterbox":
        image = ImageOps.pad(image, (settings.size, settings.size), color=0)
    return image


def prepare_image(job: ImageJob, settings: ImageSettings) -> None:
    """Decode, resize and write one image, atomically.

    Raises:
        ImageError: the source is missing or unreadable.
        OSError: the target cannot be written.
    """
    image = resize(load_grey(job.source, settings), settings)
    os.makedirs(os.path.dirname(job.target), exist_ok=True)
    temporary = f"{job.target}.{os.getpid()}.tmp"
    try:
        if settings.format == "jpg":
            image.save(temporary, "JPEG", quality=JPEG_QUALITY)
        else:
            image.save(temporary, "PNG", compress_level=6)
        os.replace(temporary, job.target)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def prepare_images(
    jobs: Iterable[ImageJob],
    settings: ImageSettings,
    workers: int,
    progress: Any = None,
    overwrite: bool = False,
) -> dict[str, ImageError]:
    """Prepare all images; those whose target exists are done, unless `overwrite`.

    Args:
        workers: processes.
        progress: an object with `update(n)`, as tqdm's.

    Returns:
        The images that failed: target → why.

    Raises:
        WorkerError: a worker process died (out of memory, killed).
        OSError: a target cannot be written.
    """
    failures: dict[str, ImageError] = {}

    def collect(done: int, failed: Iterable[tuple[str, str, bool]]) -> None:
        failures.update((target, ImageError(message, missing)) for target, message, missing in failed)
        if progress is not None:
            progress.update(done)

    jobs = iter(jobs)
    first = list(islice(jobs, FEW))
    if workers <= 1 or len(first) < FEW:
        for job in chain(first, jobs):
            collect(*_prepare_chunk([job], settings, overwrite))
        return failures
    chunks = _chunks(chain(first, jobs))
    # spawn: forking a process that has threads (Arrow has) can deadlock. Ctrl-C is for the main process to handle.
    with ProcessPoolExecutor(workers, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        try:
            # A bounded window of work, so that memory does not grow with the number of studies.
            pending: set[Future] = {
                pool.submit(_prepare_chunk, c, settings, overwrite) for c in islice(chunks, 4 * workers)
            }
            while pending:
                finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    collect(*future.result())
                pending |= {pool.submit(_prepare_chunk, c, settings, overwrite) for c in islice(chunks, len(finished))}
        except BrokenProcessPool as error:
            raise WorkerError(
                "an image worker died, most likely for want of memory; run the same command again with fewer --workers "
                "(finished images are kept)"
            ) from error
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return failures


def _chunks(jobs: Iterator[ImageJob]) -> Iterator[Sequence[ImageJob]]:
    while chunk := list(islice(jobs, CHUNK)):
        yield chunk


def _prepare_chunk(
    jobs: Sequence[ImageJob], settings: ImageSettings, overwrite: bool
) -> tuple[int, list[tuple[str, str, bool]]]:
    failed = []
    for job in jobs:
        if not overwrite and os.path.exists(job.target):  # written whole or not at all
            continue
        try:
            prepare_image(job, settings)
        except ImageError as error:
            failed.append((job.target, str(error), error.missing))
    return len(jobs), failed
