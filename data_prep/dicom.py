"""DICOM files as upright 8-bit grey images."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from data_prep.grey import grey_range, shrink, to_8_bits

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

LARGEST = 1 << 30  # bytes of decoded pixels or of an inflated file
DEFLATED = "1.2.840.10008.1.2.1.99"
# Transfer syntaxes that pydicom decodes in Python: the others' decoders are C++, and a damaged file may take the process along.
NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", DEFLATED, "1.2.840.10008.1.2.5")
# Where there is a choice, not GDCM, which ends the process at some damaged files. It alone has JPEG Lossless.
PLUGINS = {
    **dict.fromkeys(("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"), "pyjpegls"),
    **dict.fromkeys(("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"), "pylibjpeg"),
}
# A window that leaves more than this share of the pixels black or white, or less contrast than this, is not the file's.
_SATURATED, _CONTRAST = 0.8, 12.0


def is_dicom(content: bytes) -> bool:
    """Whether the bytes begin as a DICOM file with a preamble."""
    return content[128:132] == b"DICM"


def may_be_dicom(content: bytes) -> bool:
    """Whether the bytes may be a DICOM file without a preamble: they begin with an element of group 2 or 8."""
    return content[:2] in (b"\x02\x00", b"\x08\x00") and content[3:4] == b"\x00"


def parse(content: bytes, pixels: bool = True) -> Dataset:
    """The file's elements, with or without its pixels.

    Raises:
        ValueError: it inflates to more than LARGEST.
        Any error of pydicom's: damaged.
    """
    import pydicom

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # else a warning for each odd value
    if is_dicom(content) and DEFLATED.encode() in content[132:1024]:
        start = 144 + int.from_bytes(content[140:144], "little")  # behind the group of the file's meta information
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        inflater.decompress(content[start:], LARGEST)
        if inflater.unconsumed_tail:
            raise ValueError(f"inflates to more than {LARGEST >> 20} MiB")
    # force: a file without a preamble is one all the same. The bytes were looked at before.
    return pydicom.dcmread(BytesIO(content), force=True, stop_before_pixels=not pixels)


def compressed(content: bytes) -> bool:
    """Whether the file's pixels need one of the decoders in C++."""
    meta = content[:4096] if is_dicom(content) or may_be_dicom(content) else b""
    at = meta.find(b"\x02\x00\x10\x00UI")
    if at < 0:
        return False
    length = int.from_bytes(meta[at + 6 : at + 8], "little")
    return meta[at + 8 : at + 8 + length].rstrip(b"\0 ").decode("ascii", "replace") not in NATIVE


def read_dicom(content: bytes, smallest: tuple[int, int] = (1 << 30, 1 << 30)) -> Image.Image:
    """The file's first frame that shows something, in 8-bit grey: rescaled; by the first of its look-up tables and windows that
    fits its pixels, else from black to white as `grey.grey_range` finds them; padding black; low values white where the
    file says so (MONOCHROME1, or an inverse presentation LUT).

    Args:
        smallest: width and height that it may be shrunk to.

    Raises:
        ValueError: no image in it that can be used, or its compression has no decoder here.
    """
    file = parse(content)
    if "Rows" not in file or "PixelData" not in file:
        raise ValueError("a DICOM file without an image")
    photometric = str(file.get("PhotometricInterpretation", ""))
    samples, frames = int(file.get("SamplesPerPixel") or 1), int(file.get("NumberOfFrames") or 1)
    if (needed := file.Rows * file.Columns * frames * samples * int(file.BitsAllocated) // 8) > LARGEST:
        raise ValueError(f"{needed >> 20} MiB of pixels, expected at most {LARGEST >> 20}")
    pixels = _decoded(file)
    if photometric in ("MONOCHROME1", "MONOCHROME2"):
        pixels = pixels[np.newaxis] if pixels.ndim == 2 else pixels
        inverse = photometric == "MONOCHROME1" or file.get("PresentationLUTShape") == "INVERSE"
        return Image.fromarray(_first_that_shows(pixels, file, inverse, smallest))
    if samples == 3 and pixels.dtype == np.uint8:
        return Image.fromarray(pixels if pixels.ndim == 3 else pixels[0]).convert("L")
    raise ValueError(f"photometric interpretation {photometric}, expected MONOCHROME1, MONOCHROME2 or 8-bit colour")


def _decoded(file: Dataset) -> np.ndarray:
    syntax = file.file_meta.get("TransferSyntaxUID") if "file_meta" in file.__dict__ else None
    if syntax in PLUGINS:
        file.pixel_array_options(decoding_plugin=PLUGINS[syntax])
    try:
        return file.pixel_array
    except RuntimeError as error:  # pydicom's for "no decoder", among others
        if "plugins" in str(error) and "missing" in str(error):
            name = file.file_meta.TransferSyntaxUID.name
            raise ValueError(f"no decoder for {name}: pip install -r requirements.txt") from error
        raise


def _first_that_shows(frames: np.ndarray, file: Dataset, inverse: bool, smallest: tuple[int, int]) -> np.ndarray:
    for frame in frames:
        try:
            return _grey(frame, file, inverse, smallest)
        except ValueError as error:
            problem = error
    raise problem


def _grey(stored: np.ndarray, file: Dataset, inverse: bool, smallest: tuple[int, int]) -> np.ndarray:
    """One frame [height, width] as uint8.

    Raises:
        ValueError: one value everywhere.
    """
    padding = _padding(stored, file)
    tables = "ModalityLUTSequence" in file or "VOILUTSequence" in file  # these are looked up by stored values
    valid = None if padding is None else ~padding
    if not tables:
        low, high = grey_range(stored, valid)  # before shrinking, which spreads a hot pixel over its neighbours
        if padding is not None:
            stored = np.where(padding, stored.dtype.type(np.clip(low, *_limits(stored))), stored)
        small = shrink(stored, smallest, (low, high) if stored.min() < low or stored.max() > high else None)
        if small.shape != stored.shape and padding is not None:
            block = stored.shape[0] // small.shape[0]
            rows, columns = (size * block for size in small.shape)
            parts = padding[:rows, :columns].reshape(small.shape[0], block, small.shape[1], block)
            padding = parts.any(axis=(1, 3))
            valid = ~padding
        stored = small
    values = _rescaled(stored, file)
    for grey in _windowed(values, stored, file):
        seen = grey if valid is None else grey[valid]
        if np.mean((seen <= 0) | (seen >= 255)) <= _SATURATED and seen.std() >= _CONTRAST:
            grey = to_8_bits(grey, float(seen.min()), float(seen.max()))  # a window wider than the film
            break
    else:
        grey = to_8_bits(values, *grey_range(values, valid))
    if inverse:
        grey = 255 - grey
    return grey if padding is None else np.where(padding, np.uint8(0), grey)


def _limits(pixels: np.ndarray) -> tuple[float, float]:
    return (np.iinfo(pixels.dtype).min, np.iinfo(pixels.dtype).max) if pixels.dtype.kind in "iu" else (-np.inf, np.inf)


def _padding(stored: np.ndarray, file: Dataset) -> np.ndarray | None:
    """Which pixels are padding; None where none is, or all would be."""
    first = _number(file.get("PixelPaddingValue"))
    if first is None:
        return None
    if stored.dtype.kind == "i" and first > np.iinfo(stored.dtype).max:  # written as unsigned
        first -= 1 << 8 * stored.dtype.itemsize
    last = _number(file.get("PixelPaddingRangeLimit"))
    low, high = sorted((first, first if last is None else last))
    padding = (stored >= low) & (stored <= high)
    return padding if padding.any() and not padding.all() else None


def _rescaled(stored: np.ndarray, file: Dataset) -> np.ndarray:
    """The modality's values as float32. A slope of zero, which would make the film one value, is none."""
    from pydicom.pixels import apply_modality_lut

    if "ModalityLUTSequence" in file:
        return np.asarray(apply_modality_lut(stored, file), dtype=np.float32)
    slope, intercept = _number(file.get("RescaleSlope")), _number(file.get("RescaleIntercept"))
    if not slope or intercept is None:
        return stored.astype(np.float32)
    return stored.astype(np.float32) * slope + intercept


def _windowed(values: np.ndarray, stored: np.ndarray, file: Dataset) -> Iterator[np.ndarray]:
    """The values in grey, 0 to 255, by each look-up table and then each window of the file that is one."""
    if "VOILUTSequence" in file:
        from pydicom.pixels import apply_voi

        whole = np.asarray(values if "ModalityLUTSequence" in file or "RescaleSlope" in file else stored)
        for index, table in enumerate(file.VOILUTSequence):
            looked_up = np.asarray(apply_voi(whole.astype(np.int64), file, index), dtype=np.float32)
            yield looked_up * (255.0 / (2 ** int(table.LUTDescriptor[2]) - 1))
    shape = str(file.get("VOILUTFunction") or "LINEAR")
    for center, width in zip(_numbers(file.get("WindowCenter")), _numbers(file.get("WindowWidth")), strict=False):
        if shape == "SIGMOID" and width > 0:
            yield 255.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -50, 50)))
        elif shape == "LINEAR_EXACT" and width > 0:
            yield np.clip((values - center) / width + 0.5, 0, 1) * 255.0
        elif width > 1:  # DICOM PS3.3, C.11.2.1.2.1
            yield np.clip((values - (center - 0.5)) / (width - 1.0) + 0.5, 0, 1) * 255.0


def _numbers(value: Any) -> list[float]:
    values = value if isinstance(value, (list, tuple)) or hasattr(value, "append") else [value]
    return [number if (number := _number(item)) is not None else 0.0 for item in values]


def _number(value: Any) -> float | None:
    """A number that is finite; None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None
