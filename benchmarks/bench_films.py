"""How fast films of each kind are prepared on one core, and what of a deep PNG's time is its decoding.

    python -m benchmarks.bench_films [--repeats 9]

kinds: CPU ms of preparing a film of 2544 × 3056 pixels, and films a second of one core.
deep PNG: a 16-bit film of 15 megapixels. inflate: its bytes by zlib alone, below which no decoder that uses it can come; decode: all
  that Pillow does; others that are installed (imagecodecs, OpenCV) where they give the same pixels; whole array: the way before
  films were shrunk, NumPy's copy of all pixels scaled and then resized; ours. The arms alternate; ratio: ours by each of them,
  median with a 95% bootstrap interval.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
import zlib
from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless, generate_uid

from benchmarks.bench_data import FILM, _median_with_interval, film
from benchmarks.keep import keep
from data_prep.grey import grey_range, to_8_bits
from data_prep.images import ImageSettings, encode_film, scaled_film

DEEP = (3520, 4248)
SETTINGS = ImageSettings(mode="stretch")


def deep_film(width: int, height: int) -> np.ndarray:
    """12-bit values in 16 bits, with large and small structure and noise."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    pixels = 2048 + 1100 * np.sin(x / 400) * np.cos(y / 500) + 320 * np.sin(x / 37 + y / 51)
    pixels += np.random.default_rng(0).normal(0, 24, pixels.shape).astype(np.float32)
    return pixels.clip(0, 4095).astype(np.uint16)


def encoded(image: Image.Image, form: str, **options: int) -> bytes:
    """The image's file."""
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def dicom(pixels: np.ndarray, syntax: str) -> bytes:
    """A DICOM file of 12-bit pixels in a transfer syntax."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", generate_uid()
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = pixels.tobytes()
    if syntax != ExplicitVRLittleEndian:
        dataset.compress(syntax, generate_instance_uid=False)
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def prepared(content: bytes) -> bytes:
    """What preparation does between reading a file and writing one."""
    return encode_film(scaled_film(content, SETTINGS), SETTINGS)


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def kinds(repeats: int) -> dict[str, dict[str, float]]:
    """CPU ms and films a second by kind of film."""
    eight, deep = film(0), deep_film(*FILM)
    files = {
        "JPEG, 8 bits": encoded(eight, "JPEG", quality=95),
        "PNG, 8 bits": encoded(eight, "PNG"),
        "PNG, 16 bits": encoded(Image.fromarray(deep), "PNG"),
        "DICOM, uncompressed": dicom(deep, ExplicitVRLittleEndian),
        "DICOM, RLE": dicom(deep, RLELossless),
        "DICOM, JPEG-LS": dicom(deep, JPEGLSLossless),
        "DICOM, JPEG 2000": dicom(deep, JPEG2000Lossless),
    }
    results = {}
    for name, content in files.items():
        prepared(content)  # the first imports its decoder
        each = float(np.median([seconds(lambda content=content: prepared(content)) for _ in range(repeats)]))
        results[name] = {"CPU ms": round(1000 * each, 1), "films a second": round(1 / each, 1)}
    return results


def _compressed(png: bytes) -> bytes:
    at, parts = 8, []
    while at < len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        if png[at + 4 : at + 8] == b"IDAT":
            parts.append(png[at + 8 : at + 8 + length])
        at += 12 + length
    return b"".join(parts)


def _whole_array(png: bytes) -> bytes:
    with Image.open(BytesIO(png)) as image:
        pixels = np.asarray(image)
    grey = Image.fromarray(to_8_bits(pixels, *grey_range(pixels)))
    size = (SETTINGS.size, SETTINGS.size)
    return encode_film(grey.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0), SETTINGS)


def deep_png(repeats: int) -> dict[str, object]:
    """The arms' CPU ms and ours by each."""
    pixels = deep_film(*DEEP)
    png = encoded(Image.fromarray(pixels), "PNG")
    compressed = _compressed(png)
    arms: dict[str, Callable[[], object]] = {
        "inflate": lambda: zlib.decompress(compressed),
        "decode": lambda: Image.open(BytesIO(png)).load(),
        "whole array": lambda: _whole_array(png),
        "ours": lambda: prepared(png),
    }
    if importlib.util.find_spec("imagecodecs"):
        import imagecodecs

        arms["imagecodecs"] = lambda: imagecodecs.png_decode(png)
    if importlib.util.find_spec("cv2"):
        import cv2

        arms["opencv"] = lambda: cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    for name in ("imagecodecs", "opencv"):
        if name in arms and not np.array_equal(arms[name](), pixels):
            raise SystemExit(f"{name} gives other pixels")
    taken: dict[str, list[float]] = {name: [] for name in arms}
    order = list(arms)
    for number in range(repeats + 1):
        order.reverse()  # what drifts, drifts through all arms alike
        for name in order:
            spent = seconds(arms[name])
            if number:  # the first warms up
                taken[name].append(spent)
    ours = np.array(taken["ours"])
    return {
        "megabytes": round(len(png) / 1e6, 1),
        "CPU ms": {name: round(1000 * float(np.median(values)), 1) for name, values in taken.items()},
        "ours by": {name: _median_with_interval(ours / np.array(v)) for name, v in taken.items() if name != "ours"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    keep("films", {"kinds": kinds(given.repeats), "deep PNG": deep_png(given.repeats)})


if __name__ == "__main__":
    main()
