"""One key image: decoded whatever it is, made 8-bit grey and upright, resized, and written whole or not at all.

Only Pillow and NumPy are imported here (and pydicom for a DICOM file), so that worker processes start quickly.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from data_prep.dicom import is_dicom, may_be_dicom, read_dicom
from data_prep.grey import ROWS, figures, scale_to_8_bits
from foundation.files import write_bytes

MODES = ("longest", "letterbox", "stretch")
FORMATS = ("jpg", "png")
JPEG_QUALITY = 95  # our choice: a third of a PNG's bytes, no visible loss at this size
LARGEST_FILE = 1 << 30  # bytes; no film has so many

# What Pillow raises on a broken or hostile file.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, OverflowError, Image.DecompressionBombError)
ImageFile.LOAD_TRUNCATED_IMAGES = False  # a half image must be a reject, not a grey half

# Our choice: far from any film, and far within the 1:200 beyond which Qwen3-VL's processor refuses an image in training.
SMALLEST_SIDE, LONGEST_SHAPE = 16, 20
MISSING, UNREAD, BROKEN, FLAT = "missing", "unread", "broken", "flat"


class ImageError(ValueError):
    """An image that cannot be used. `kind`: MISSING (no such file), UNREAD (the file system refused it: it may be there another
    time), BROKEN (cannot be decoded) or FLAT (decoded, and nothing to be seen on it)."""

    def __init__(self, message: str, kind: str = BROKEN):
        super().__init__(message)
        self.kind = kind


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


@dataclass(frozen=True)
class ImageRecord:
    """What became of one image.

    Args:
        source_bytes, source_modified, source_crc32: of the source file (modified: nanoseconds); None where it could not be read.
        bytes, crc32: of the image that was written; None where there is none.
        mean, deviation: of its pixels, of 255.
        problem: MISSING, UNREAD, BROKEN or FLAT, with `detail` in one line; None where the image is good.
    """

    source_bytes: int | None = None
    source_modified: int | None = None
    source_crc32: int | None = None
    bytes: int | None = None
    crc32: int | None = None
    mean: float | None = None
    deviation: float | None = None
    problem: str | None = None
    detail: str | None = None


def target_size(width: int, height: int, settings: ImageSettings, doubled: bool = False) -> tuple[int, int]:
    """Width and height of the scaled image, before any letterbox bars; never enlarged in mode `longest`. `doubled`: twice
    that, which leaves resampling enough to work on."""
    size = settings.size * 2 if doubled else settings.size
    if settings.mode == "stretch":
        return size, size
    scale = size / max(width, height)
    if settings.mode == "longest":
        scale = min(scale, 1.0)
    return max(1, round(width * scale)), max(1, round(height * scale))


def load_grey(path: str | Path, settings: ImageSettings) -> Image.Image:
    """The image as upright 8-bit grey, decoded at a reduced scale where the format can (JPEG), not below its target size.

    Raises:
        ImageError: missing or unreadable.
    """
    return decode_grey(read_image_file(path), settings)


def read_image_file(path: str | Path) -> bytes:
    """The file's bytes.

    Raises:
        ImageError: missing, not to be read now, or larger than any film.
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > LARGEST_FILE:
                raise ImageError(f"larger than {LARGEST_FILE >> 20} MiB")
            return file.read()
    except FileNotFoundError as error:
        raise ImageError("file not found", MISSING) from error
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror or type(error).__name__})", UNREAD) from error


def decode_grey(content: bytes, settings: ImageSettings) -> Image.Image:
    """As `load_grey`, of a file's bytes, which say what it is: its name does not.

    Raises:
        ImageError: whatever happened while it was decoded; an image without any contrast among it.
    """
    try:
        if is_dicom(content):
            return read_dicom(content, _shrinkable(settings))
        try:
            image = Image.open(BytesIO(content))
        except UnidentifiedImageError as error:
            if may_be_dicom(content):
                return read_dicom(content, _shrinkable(settings))
            raise ValueError("neither an image nor a DICOM file") from error
        with image:
            if (deep := _sixteen_bit_colour(image, content)) is not None:
                return Image.fromarray(scale_to_8_bits(deep, target_size(*image.size, settings, doubled=True)))
            # JPEG decodes at 1/2, 1/4 or 1/8 directly; never to less than the target size.
            image.draft("L", target_size(*image.size, settings))
            image.load()
            ImageOps.exif_transpose(
                image, in_place=True
            )  # not in place, it copies the film where nothing is to be turned
            return to_grey(image, settings)
    except Exception as error:  # decoders raise anything on a damaged file, and one film must not end the run
        raise ImageError(" ".join(f"{type(error).__name__}: {error}".split())[:300]) from error


def _shrinkable(settings: ImageSettings) -> tuple[int, int]:
    return 2 * settings.size, 2 * settings.size


def _sixteen_bit_colour(image: Image.Image, content: bytes) -> np.ndarray | None:
    """Grey values of a PNG of 16-bit colour or with 16-bit alpha, whose lower bytes Pillow drops; None for others.

    12-bit values in 16 bits lose all but four bits that way. Two passes read the upper and the lower bytes; grey with alpha is
    four bytes a pixel, as 8-bit RGBA is.
    """
    raw = str(image.tile[0].args) if image.format == "PNG" and image.tile else ""
    if raw not in ("RGB;16B", "RGBA;16B", "LA;16B"):
        return None

    def decoded(mode: str, raw_mode: str) -> Iterator[np.ndarray]:
        with Image.open(BytesIO(content)) as again:
            again._mode = mode
            again.tile = [again.tile[0]._replace(args=raw_mode)]
            again.load()
            yield from _strips(again)

    if raw == "LA;16B":
        pairs = ((part[..., 0], part[..., 1]) for part in decoded("RGBA", "RGBA"))
    else:
        mode = raw.split(";")[0]
        pairs = zip(decoded(mode, f"{mode};16B"), decoded(mode, f"{mode};16L"), strict=True)

    def grey(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
        part = upper.astype(np.float32) * 256 + lower.astype(np.float32)
        return part if part.ndim == 2 else part[..., :3] @ np.array([0.299, 0.587, 0.114], dtype=np.float32)

    return _joined((grey(*pair) for pair in pairs), image.height)


def _strips(image: Image.Image) -> Iterator[np.ndarray]:
    """The pixels, some rows at a time: NumPy's copy of all at once is six times as slow, and Pillow makes two more for it."""
    for top in range(0, image.height, ROWS):
        yield np.asarray(image.crop((0, top, image.width, min(top + ROWS, image.height))))


def pixels_of(image: Image.Image) -> np.ndarray:
    """The pixels [height, width] of an image of one channel."""
    return _joined(_strips(image), image.height)


def _joined(strips: Iterable[np.ndarray], height: int) -> np.ndarray:
    """Strips [rows, width] as one array [height, width], filled as they come."""
    top = 0
    for strip in strips:
        if not top:
            whole = np.empty((height, strip.shape[1]), strip.dtype)
        whole[top : top + len(strip)] = strip
        top += len(strip)
    return whole


def to_grey(image: Image.Image, settings: ImageSettings | None = None) -> Image.Image:
    """8-bit grey of any Pillow image. Deeper images are scaled by their own range (`grey.grey_range`): 12-bit values are often
    stored in 16 bits, so the format's range says nothing. With `settings` they are shrunk before they are scaled."""
    if image.mode == "L":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        smallest = target_size(*image.size, settings, doubled=True) if settings else image.size
        return Image.fromarray(scale_to_8_bits(pixels_of(image), smallest))
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        return image.convert("RGBA").convert("L")
    return image.convert("L")


def resize(image: Image.Image, settings: ImageSettings) -> Image.Image:
    """The grey image at its target size; letterboxed with black where the mode says so.

    Raises:
        ImageError: it has the shape of no film.
    """
    return _letterboxed(_scaled(image, settings), settings)


def _scaled(image: Image.Image, settings: ImageSettings) -> Image.Image:
    width, height = image.size
    if min(width, height) < SMALLEST_SIDE or max(width, height) > LONGEST_SHAPE * min(width, height):
        raise ImageError(
            f"{width} × {height} pixels; a film has {SMALLEST_SIDE} a side or more, and no side {LONGEST_SHAPE} times the other"
        )
    size = target_size(*image.size, settings)
    if image.size == size:
        return image
    # Bicubic: as close to a full decode with Lanczos as Lanczos itself, and a millisecond cheaper.
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def _letterboxed(image: Image.Image, settings: ImageSettings) -> Image.Image:
    if settings.mode != "letterbox":
        return image
    return ImageOps.pad(image, (settings.size, settings.size), color=0)


def prepare_image(job: ImageJob, settings: ImageSettings, content: bytes | None = None) -> ImageRecord:
    """Decode, resize and write one image, whole or not at all. `content`: the source's bytes, where they were read already.

    Raises:
        ImageError: the source is missing or unreadable, or nothing is to be seen on it.
        OSError: the target cannot be written.
    """
    modified = source_state(job.source)
    content = read_image_file(job.source) if content is None else content
    scaled = scaled_film(content, settings)
    mean, deviation = contrast(scaled)
    written = encode_film(scaled, settings)
    write_bytes(Path(job.target), written)
    return ImageRecord(
        source_bytes=len(content),
        source_modified=modified[1] if modified else None,
        source_crc32=zlib.crc32(content),
        bytes=len(written),
        crc32=zlib.crc32(written),
        mean=mean,
        deviation=deviation,
    )


def scaled_film(content: bytes, settings: ImageSettings) -> Image.Image:
    """A film's bytes as upright 8-bit grey at its target size, before any letterbox bars.

    Raises:
        ImageError: it cannot be decoded, or has the shape of no film.
    """
    return _scaled(decode_grey(content, settings), settings)


def contrast(scaled: Image.Image) -> tuple[float, float]:
    """Mean and standard deviation of a film's pixels, of 255.

    Raises:
        ImageError: nothing is to be seen on it (FLAT).
    """
    try:
        return figures(np.asarray(scaled))
    except ValueError as error:
        raise ImageError(str(error), FLAT) from error


def encode_film(scaled: Image.Image, settings: ImageSettings) -> bytes:
    """The file of a scaled film: what lies in a prepared folder, and what whoever shows a model a film shows it."""
    encoded = BytesIO()  # not to the file: Pillow's encoder does not look whether all that it wrote was written
    if settings.format == "jpg":
        _letterboxed(scaled, settings).save(encoded, "JPEG", quality=JPEG_QUALITY)
    else:
        _letterboxed(scaled, settings).save(encoded, "PNG", compress_level=6)
    return encoded.getvalue()


def source_state(path: str | Path) -> tuple[int, int] | None:
    """Size and time of change (nanoseconds) of a file; None where there is none."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns


def is_done(job: ImageJob, record: ImageRecord, whole: bool = False) -> bool:
    """Whether the source is as it was when the record was made and, where there is an image, it has as many bytes as were
    written. A source whose time alone has changed (a copy) is read to compare its content; so is the image where `whole`."""
    state = source_state(job.source)
    if record.problem == MISSING:
        return state is None
    if state is None and not record.problem:
        pass  # a source that was taken away since does not unmake its image
    elif (
        state is None
        or record.problem == UNREAD
        or state[0] != record.source_bytes
        or (state[1] != record.source_modified and crc32_of(job.source) != record.source_crc32)
    ):
        return False
    if record.problem:
        return True
    written = source_state(job.target)
    if written is None or written[0] != record.bytes:
        return False
    return not whole or crc32_of(job.target) == record.crc32


def crc32_of(path: str | Path) -> int | None:
    """CRC-32 of a file's content; None where it cannot be read."""
    value = 0
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                value = zlib.crc32(block, value)
    except OSError:
        return None
    return value
