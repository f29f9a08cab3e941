"""Films as they lie on disk: DICOM of every kind, deep PNGs; what a viewer shows is never black, and what is empty is refused."""

from __future__ import annotations

import base64
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    HTJ2K,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from data_prep import image_pool
from data_prep.grey import grey_range, shrink
from data_prep.image_pool import prepare_images
from data_prep.images import BROKEN, FLAT, ImageError, ImageJob, ImageSettings, load_grey, prepare_image

Y, X = np.mgrid[0:144, 0:120]
BLOB = np.exp(-((X - 60) ** 2 + (Y - 72) ** 2) / 4300)
FILM = (500 + 2500 * BLOB + np.random.default_rng(0).normal(0, 40, BLOB.shape)).clip(0, 4095).astype(np.uint16)


# 64 x 56 values 400 + 30 x + 25 y, by OpenJPH (losslessly): no package that the tests need can write HTJ2K.
HIGH_THROUGHPUT = base64.b64decode(
    "/0//UQApQAAAAAA4AAAAQAAAAAAAAAAAAAACAAAAAgAAAAAAAAAAAAABDwEB/1AACAACAAAADP9SAAwAAgABAAUEBEAB/1wAEyCQ"
    "mJigmJigmJigmJiYkJCY/2QAFwABT3BlbkpQSCBWZXIgMC4xNC4wLv+QAAoAAAAAARcAAf+TwAAVgN383Poz+qH2AoG0AMAACogA"
    "ATgCBOjXAQK0AJBD/gCDVADAAAqIAAFUYQjhl+ALdQDIkZGRwDGB7LYAwAALRgAAWgAQISAgQkCEgPjn36/X4Yt4AOJisVgsFv2E"
    "ICP2IQHsugDAAAtuAABbgAaDwWAwGAwGg8FgMBgM9/4Kenp6enp6cQJ9AG7XdV3XdV3XdV33/3YAj2EIHv2EIHv2EIHssQHAABdT"
    "AABdiFprrbXWWmuttdZaa6211lprrbXW/j/6enp6enp6enp6enp6enpwAnUBMIQQQgghhBBCCCGEEEIIIYTw/3+6AAAe/YAAe/YA"
    "Ae/YAAe/YAAe/YAAe/YAAey/Af/Z"
)


def dicom(
    path: Path,
    pixels: np.ndarray = FILM,
    syntax: str = ExplicitVRLittleEndian,
    data: bytes | None = None,
    **more: object,
) -> Path:
    """A DICOM file of `pixels`; `data`: them compressed."""
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = syntax
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = "1.2.3"
    file.Rows, file.Columns = pixels.shape[-2:]
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    if pixels.ndim == 3:
        file.NumberOfFrames = len(pixels)
    for name, value in more.items():
        setattr(file, name, value)
    file.HighBit = file.BitsStored - 1
    if data is None:
        file.PixelData = pixels.astype(
            pixels.dtype.newbyteorder(">" if syntax == ExplicitVRBigEndian else "<")
        ).tobytes()
        file["PixelData"].VR = "OW"
    else:
        file.PixelData = encapsulate([data])
        file["PixelData"].VR = "OB"
        file["PixelData"].is_undefined_length = True
    file.save_as(path, enforce_file_format=True)
    return path


def grey(path: Path) -> np.ndarray:
    return np.asarray(load_grey(path, ImageSettings()), dtype=float)


def alike(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def padded(value: int, pixels: np.ndarray, kind: type) -> np.ndarray:
    pixels = pixels.astype(kind)
    pixels[:, :20] = value
    return pixels


def table_of(entries: np.ndarray) -> Sequence:
    """A VOI look-up table from 0 on."""
    item = Dataset()
    item.LUTDescriptor = [len(entries), 0, 16]
    item.LUTData = entries.astype("<u2").tobytes()
    item["LUTData"].VR = "OW"
    return Sequence([item])


NOT_OF_THIS_FILE = {"WindowCenter": 128, "WindowWidth": 256}
SHOWN: dict[str, Callable[[Path], Path]] = {
    "as it is": lambda p: dicom(p),
    "a window that fits": lambda p: dicom(p, WindowCenter=1750, WindowWidth=2500),
    "a window of another file": lambda p: dicom(p, **NOT_OF_THIS_FILE),
    "the second window fits": lambda p: dicom(p, WindowCenter=[128, 1750], WindowWidth=[256, 2500]),
    "a window of width 0": lambda p: dicom(p, WindowCenter=1750, WindowWidth=0),
    "more centers than widths": lambda p: dicom(p, WindowCenter=[128, 1750], WindowWidth=256),
    "a sigmoid": lambda p: dicom(p, WindowCenter=1750, WindowWidth=2500, VOILUTFunction="SIGMOID"),
    "slope 0": lambda p: dicom(p, RescaleSlope=0, RescaleIntercept=0),
    "slope and intercept": lambda p: dicom(p, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=2500, WindowWidth=5000),
    "first frame blank": lambda p: dicom(p, np.stack([FILM * 0, FILM])),
    "padding -2000": lambda p: dicom(p, padded(-2000, FILM, np.int16), PixelRepresentation=1, BitsStored=16, PixelPaddingValue=-2000),
    "padding 65535": lambda p: dicom(p, padded(65535, FILM, np.uint16), BitsStored=16, PixelPaddingValue=65535),
    "low is white": lambda p: dicom(p, 4095 - FILM, PhotometricInterpretation="MONOCHROME1"),
    "low is white, padding 0": lambda p: dicom(
        p, padded(0, 4095 - FILM, np.uint16), PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0
    ),
    "an inverse presentation": lambda p: dicom(p, 4095 - FILM, PresentationLUTShape="INVERSE"),
    "a look-up table": lambda p: dicom(p, VOILUTSequence=table_of(np.arange(4096) * 16)),
    "an empty look-up table": lambda p: dicom(p, VOILUTSequence=table_of(np.zeros(4096))),
    "a hot pixel": lambda p: dicom(p, np.where((X == 3) & (Y == 3), 65535, FILM).astype(np.uint16), BitsStored=16),
    "colour": lambda p: dicom(
        p, np.repeat((BLOB * 200 + 20).astype(np.uint8), 3, 1), Columns=120, SamplesPerPixel=3, PlanarConfiguration=0,
        PhotometricInterpretation="RGB", BitsAllocated=8, BitsStored=8,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_what_a_viewer_shows_is_shown(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x"
    SHOWN[name](path)
    shown = grey(path)
    inner = slice(24, None) if "padding" in name else slice(None)
    assert shown[:, inner].std() > 30
    assert alike(shown[:, inner], BLOB[:, inner]) > 0.97
    if "padding" in name:
        assert shown[:, :18].max() == 0


def lossless(path: Path, pixels: np.ndarray = FILM) -> Path:
    """JPEG Lossless (what most PACS keep films in), by GDCM."""
    import gdcm

    plain = dicom(path.with_name("plain"), pixels)
    reader = gdcm.ImageReader()
    reader.SetFileName(str(plain))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return path


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEGLSLossless,
        JPEG2000Lossless,
    ],
)
def test_transfer_syntaxes(tmp_path: Path, syntax: str) -> None:
    path = tmp_path / "x.dcm"
    if syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
        file = dcmread(dicom(path))
        file.compress(syntax)
        file.save_as(path)
    else:
        dicom(path, syntax=syntax)
    assert dcmread(path).file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(grey(path), grey(dicom(tmp_path / "plain.dcm")))


def test_jpeg_lossless(tmp_path: Path) -> None:
    path = lossless(tmp_path / "x.dcm")
    assert JPEGLosslessSV1.encode() in path.read_bytes()
    assert np.array_equal(grey(path), grey(dicom(tmp_path / "plain.dcm")))


@pytest.mark.parametrize("syntax", [HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K])
def test_high_throughput_jpeg_2000(tmp_path: Path, syntax: str) -> None:
    pixels = (400 + 30 * X[:64, :56] + 25 * Y[:64, :56]).astype(np.uint16)
    path = dicom(tmp_path / "x.dcm", pixels, syntax, HIGH_THROUGHPUT, BitsStored=16)
    assert np.array_equal(dcmread(path).pixel_array, pixels)
    assert np.array_equal(grey(path), grey(dicom(tmp_path / "plain.dcm", pixels, BitsStored=16)))


def test_the_bytes_say_what_a_file_is(tmp_path: Path) -> None:
    plain = dicom(tmp_path / "x.dcm").read_bytes()
    for name in ("1.2.840.113619.2.5", "x.IMA", "x.png", "x"):
        (tmp_path / name).write_bytes(plain)
        assert grey(tmp_path / name).std() > 30
    (tmp_path / "no_preamble").write_bytes(plain[132:])
    assert grey(tmp_path / "no_preamble").std() > 30
    Image.fromarray((BLOB * 255).astype(np.uint8)).save(tmp_path / "y.png")
    (tmp_path / "y.dcm").write_bytes((tmp_path / "y.png").read_bytes())
    assert grey(tmp_path / "y.dcm").std() > 30


def damaged_deflate(path: Path) -> None:
    content = dicom(path, syntax=DeflatedExplicitVRLittleEndian).read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    path.write_bytes(content[:start] + b"\xff" * 200 + content[start + 200 :])


def wrong_length(path: Path) -> None:
    content = dicom(path).read_bytes()
    path.write_bytes(content.replace(b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x10\x00UL\x02\x00"))


def deflate_bomb(path: Path) -> None:
    dicom(path, syntax=DeflatedExplicitVRLittleEndian)
    content = path.read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    bomb = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = b"\0" * (1 << 24)
    path.write_bytes(content[:start] + b"".join(bomb.compress(block) for _ in range(70)) + bomb.flush())


DAMAGED: dict[str, Callable[[Path], object]] = {
    "cut": lambda p: p.write_bytes(dicom(p).read_bytes()[:5000]),
    "deflated stream damaged": damaged_deflate,
    "a two-byte value of four": wrong_length,
    "no image": lambda p: dicom(p, FILM[:0, :0]),
    "more frames than bytes": lambda p: dicom(p, NumberOfFrames=9),
    "a terabyte of frames": lambda p: dicom(p, NumberOfFrames=50_000_000),
    "not a number of rows": lambda p: p.write_bytes(dicom(p).read_bytes().replace(b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00XX")),
    "a report, no film": lambda p: p.write_bytes(b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_dicom_file_is_an_image_error(tmp_path: Path, name: str) -> None:
    DAMAGED[name](tmp_path / "x.dcm")
    with pytest.raises(ImageError):
        load_grey(tmp_path / "x.dcm", ImageSettings())


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEG2000Lossless, JPEGLSLossless])
def test_a_decoder_that_ends_its_process_ends_no_run(tmp_path: Path, syntax: str) -> None:
    whole = lossless(tmp_path / "whole.dcm").read_bytes()
    dicom(tmp_path / "0.dcm", syntax=syntax, data=b"\xff\xd8\xff\xd9")
    dicom(tmp_path / "1.dcm", syntax=syntax, data=b"\xff\x4f\xff\x51" + b"x" * 99)
    (tmp_path / "2.dcm").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "3.dcm").write_bytes(whole)
    jobs = [ImageJob(str(tmp_path / f"{n}.dcm"), str(tmp_path / "out" / f"{n}.jpg")) for n in range(4)]
    failures = prepare_images(jobs, ImageSettings(), workers=1)
    assert {"0.jpg", "1.jpg"} <= {Path(target).name for target in failures} <= {"0.jpg", "1.jpg", "2.jpg"}
    assert (tmp_path / "out" / "3.jpg").exists()


@pytest.mark.slow
def test_a_deflated_file_that_inflates_without_end_is_an_image_error(tmp_path: Path) -> None:
    deflate_bomb(tmp_path / "x.dcm")
    with pytest.raises(ImageError, match="inflates to more than"):
        load_grey(tmp_path / "x.dcm", ImageSettings())


def png(path: Path, pixels: np.ndarray, colour: int) -> Path:
    """A 16-bit PNG; `colour` as its header says: 0 grey, 2 three colours, 4 grey and alpha, 6 three colours and alpha."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(content)
    return path


def test_sixteen_bit_colour_and_alpha_keep_their_lower_bytes(tmp_path: Path) -> None:
    opaque = np.full_like(FILM, 65535)
    plain = grey(png(tmp_path / "0.png", FILM, 0))
    for colour, planes in ((2, [FILM] * 3), (4, [FILM, opaque]), (6, [FILM, FILM, FILM, opaque])):
        assert np.abs(grey(png(tmp_path / f"{colour}.png", np.stack(planes, -1), colour)) - plain).max() <= 1


@pytest.mark.parametrize(
    "where", [(slice(0, 1), slice(0, 1)), (slice(10, 20), slice(10, 30)), (slice(0, 30), slice(0, 40))]
)
def test_a_hot_pixel_or_a_marker_does_not_make_a_film_black(tmp_path: Path, where: tuple[slice, slice]) -> None:
    for value in (65535, 60000):
        marked = FILM.copy() + 8000
        marked[where] = value
        shown = grey(png(tmp_path / "x.png", marked, 0))
        assert shown[40:].std() > 35
        marked = 40000 - FILM
        marked[where] = 0
        assert grey(png(tmp_path / "x.png", marked, 0))[40:].std() > 35


def test_a_range_without_outliers_is_whole() -> None:
    assert grey_range(FILM) == (FILM.min(), FILM.max())
    collimated = FILM.copy()
    collimated[:, :40] = 0  # a black border is no outlier
    assert grey_range(collimated) == (0, FILM.max())
    with pytest.raises(ValueError, match="one value everywhere"):
        grey_range(FILM * 0 + 7)
    with pytest.raises(ValueError, match="almost everywhere"):
        grey_range(np.where((X == 3) & (Y == 3), 65535, 7))


def test_shrinking_averages_blocks_and_never_goes_below_what_is_asked() -> None:
    deep = np.arange(12 * 15, dtype=np.uint16).reshape(12, 15) + 60_000
    small = shrink(deep, (4, 4))
    assert small.shape == (4, 5)
    assert small[1, 2] == deep[3:6, 6:9].mean()
    assert shrink(deep, (8, 8)) is deep


def test_a_film_without_contrast_is_refused_with_its_figures(tmp_path: Path) -> None:
    Image.fromarray((4 + BLOB * 5).astype(np.uint8)).save(tmp_path / "x.png")
    with pytest.raises(
        ImageError, match=r"almost no contrast \(mean 6\.\d, standard deviation 1\.\d of 255\)"
    ) as caught:
        prepare_image(ImageJob(str(tmp_path / "x.png"), str(tmp_path / "out.jpg")), ImageSettings())
    assert caught.value.kind == FLAT
    assert not (tmp_path / "out.jpg").exists()


def test_a_film_at_which_a_worker_dies_or_hangs_is_that_films_reject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "if os.environ.get('DEADLY'):\n"
        "    import data_prep.image_pool as pool\n"
        "    pool.SECONDS_A_FILM = 2\n"
        "    real = pool.prepare_image\n"
        "    def prepare_image(job, *rest):\n"
        "        if os.path.basename(job.source) == '7.png': os._exit(9)\n"
        "        if os.path.basename(job.source) == '21.png': time.sleep(60)\n"
        "        return real(job, *rest)\n"
        "    pool.prepare_image = prepare_image\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.getcwd()}")
    monkeypatch.setenv("DEADLY", "1")
    jobs = []
    for number in (*range(6), 7, 8, *range(20, 46)):
        Image.fromarray((BLOB * 255).astype(np.uint8)).save(tmp_path / f"{number}.png")
        jobs.append(ImageJob(str(tmp_path / f"{number}.png"), str(tmp_path / "out" / f"{number}.jpg")))
    failures = prepare_images(jobs, ImageSettings(32), workers=2)
    assert {Path(target).stem: record.problem for target, record in failures.items()} == {"7": BROKEN, "21": BROKEN}
    assert len(list((tmp_path / "out").iterdir())) == len(jobs) - 2


def workers_of(leader: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"spawn_main" in (entry / "cmdline").read_bytes():
                session = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[3])
                found += [int(entry.name)] if session == leader else []
        except OSError:
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_a_run_that_is_ended(tmp_path: Path, how: signal.Signals) -> None:
    source, out = tmp_path / "s", tmp_path / "o"
    source.mkdir()
    Image.fromarray(np.tile((BLOB * 255).astype(np.uint8), (8, 8))).save(source / "0.png", compress_level=1)
    for number in range(1, 300):
        os.link(source / "0.png", source / f"{number}.png")
    rows = "".join(f"a{n},p{n},{n}.png,Clear.\n" for n in range(300))
    (source / "t.csv").write_text("acc,mrn,file,text\n" + rows)
    (source / "m.yaml").write_text(
        "table: t.csv\ncolumns: {study_id: acc, patient_id: mrn, image: file, findings: text}\n"
    )
    command = ["custom", "--source", source, "--mapping", source / "m.yaml", "--out", out, "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "data_prep", *map(str, command)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    )  # fmt: skip
    until = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < until and len(list(out.glob("images/*/*.jpg"))) < 20:
        time.sleep(0.02)
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (143 if how == signal.SIGTERM else -signal.SIGKILL)
    if how == signal.SIGTERM:
        assert said.strip().splitlines()[-1].startswith("stopped; run the same command again")
        assert "Traceback" not in said
    until = time.monotonic() + 20
    while (left := workers_of(process.pid)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left


def test_limits_are_ten_times_what_large_films_take() -> None:
    assert image_pool.SECONDS_A_FILM >= 30
    assert image_pool.MEMORY_A_FILM >= 2 << 30
