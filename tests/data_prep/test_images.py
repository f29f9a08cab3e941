"""Images: 8-bit grey, right way up, right size, nothing half-written."""

from __future__ import annotations

from pathlib import Path

import material
import numpy as np
import pytest
from PIL import Image

from data_prep.image_pool import prepare_images
from data_prep.images import (
    MISSING,
    ImageError,
    ImageJob,
    ImageRecord,
    ImageSettings,
    load_grey,
    prepare_image,
    resize,
    target_size,
)


def gradient(width: int = 200, height: int = 100) -> Image.Image:
    """Dark at the left, bright at the right; a bright square in the upper left corner."""
    pixels = np.tile(np.linspace(20, 220, width), (height, 1))
    pixels[: height // 5, : width // 5] = 255
    return Image.fromarray(pixels.astype(np.uint8))


def prepared(path: Path, settings: ImageSettings) -> np.ndarray:
    target = path.parent / f"out.{settings.format}"
    prepare_image(ImageJob(str(path), str(target)), settings)
    with Image.open(target) as image:
        assert image.mode == "L"
        return np.asarray(image).astype(int)


@pytest.mark.parametrize(
    ("size", "mode", "expected"),
    [
        ((2544, 3056), "longest", (426, 512)),
        ((3056, 2544), "longest", (512, 426)),
        ((300, 200), "longest", (300, 200)),
        ((300, 200), "stretch", (512, 512)),
        ((300, 200), "letterbox", (512, 341)),
    ],
)
def test_target_size(size: tuple, mode: str, expected: tuple) -> None:
    assert target_size(*size, ImageSettings(512, mode)) == expected


def test_letterbox_is_square_and_black_around(tmp_path: Path) -> None:
    gradient().save(tmp_path / "x.png")
    pixels = prepared(tmp_path / "x.png", ImageSettings(64, "letterbox", "png"))
    assert pixels.shape == (64, 64)
    assert pixels[:15].max() == pixels[-15:].max() == 0
    assert pixels[32].mean() > 100


@pytest.mark.parametrize("format", ["jpg", "png"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK", "1"])
def test_every_colour_mode_becomes_the_same_grey(tmp_path: Path, mode: str, format: str) -> None:
    suffix = "jpg" if mode == "CMYK" else "png"
    gradient().convert(mode).save(tmp_path / f"x.{suffix}", **({"quality": 95} if suffix == "jpg" else {}))
    pixels = prepared(tmp_path / f"x.{suffix}", ImageSettings(100, format=format))
    reference = np.asarray(resize(gradient(), ImageSettings(100))).astype(int)
    assert pixels.shape == reference.shape == (50, 100)
    assert np.abs(pixels - reference).mean() < (12 if mode in ("1", "P") else 3)


def test_sixteen_bits_are_scaled_whatever_part_of_them_is_used(tmp_path: Path) -> None:
    for bits in (12, 16):
        deep = np.asarray(gradient()).astype(np.uint16) << (bits - 8)
        Image.fromarray(deep).save(tmp_path / "x.png")
        pixels = prepared(tmp_path / "x.png", ImageSettings(200, format="png"))
        assert pixels.min() == 0
        assert pixels.max() == 255
        assert np.corrcoef(pixels.ravel(), deep.ravel())[0, 1] > 0.9999


@pytest.mark.parametrize("pixels", [np.full((20, 20), 4000, np.uint16), np.full((20, 20), 7, np.uint8)])
def test_an_image_of_one_value_is_refused_with_its_figures(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(tmp_path / "x.png")
    with pytest.raises(
        ImageError, match=r"one value everywhere \(4000\)|almost no contrast \(mean 7, standard deviation 0"
    ):
        prepared(tmp_path / "x.png", ImageSettings(20))


@pytest.mark.parametrize("size", [(1, 1), (15, 200), (2000, 40), (40, 2000)])
def test_an_image_that_has_no_films_shape_is_refused_with_its_size(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "strip.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 255, size[::-1], dtype=np.uint8)).save(path)
    for settings in (ImageSettings(), ImageSettings(mode="letterbox")):
        with pytest.raises(ImageError, match=f"{size[0]} × {size[1]} pixels"):
            prepared(path, settings)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path: Path, orientation: int) -> None:
    upright = gradient()
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpose that the viewer must undo
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.jpg", quality=95, exif=exif)
    pixels = prepared(tmp_path / "x.jpg", ImageSettings(200))
    assert np.abs(pixels - np.asarray(upright).astype(int)).mean() < 3


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    deep = np.asarray(gradient()).astype(np.uint16) * 16
    material.write_dicom(tmp_path / "two.dcm", deep, "MONOCHROME2")
    material.write_dicom(tmp_path / "one.dcm", 4095 - deep, "MONOCHROME1")
    material.write_dicom(tmp_path / "without_suffix", deep, "MONOCHROME2")
    settings = ImageSettings(200, format="png")
    two = prepared(tmp_path / "two.dcm", settings)
    assert np.abs(two - prepared(tmp_path / "one.dcm", settings)).max() <= 1
    assert np.array_equal(two, prepared(tmp_path / "without_suffix", settings))
    assert np.corrcoef(two.ravel(), deep.ravel())[0, 1] > 0.999


def test_reduced_decoding_is_as_good_as_full(tmp_path: Path) -> None:
    big = gradient(1600, 1200)
    big.save(tmp_path / "x.jpg", quality=95)
    fast = resize(load_grey(tmp_path / "x.jpg", ImageSettings(128)), ImageSettings(128))
    full = big.resize((128, 96), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(fast).astype(int) - np.asarray(full).astype(int)).mean() < 1.5


BROKEN = {
    "truncated.jpg": lambda path: (gradient(400, 300).save(path, quality=95), material.truncate(path)),
    "truncated.png": lambda path: (gradient(400, 300).save(path), material.truncate(path)),
    "empty.png": lambda path: path.write_bytes(b""),
    "text.jpg": lambda path: path.write_text("not an image"),
    "header.png": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40),
    "not.dcm": lambda path: path.write_bytes(b"\0" * 200),
    "cut.dcm": lambda path: (material.write_dicom(path, np.zeros((40, 40), np.uint16)), material.truncate(path)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_errors_and_leave_nothing(tmp_path: Path, name: str) -> None:
    BROKEN[name](tmp_path / name)
    with pytest.raises(ImageError) as caught:
        prepare_image(ImageJob(str(tmp_path / name), str(tmp_path / "out" / "x.jpg")), ImageSettings())
    assert caught.value.kind != MISSING
    assert str(tmp_path) not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_many_in_processes_with_failures_and_resumption(tmp_path: Path) -> None:
    jobs = []
    for n in range(40):
        path = tmp_path / f"{n}.png"
        if n == 7:
            path.write_bytes(b"broken")
        elif n != 9:
            gradient(60 + n, 50).save(path)
        jobs.append(ImageJob(str(path), str(tmp_path / "out" / f"{n}.jpg")))
    records: dict[str, ImageRecord] = {}
    failures = prepare_images(jobs, ImageSettings(32), workers=2, note=records.update)
    assert {Path(target).name: record.problem for target, record in failures.items()} == {
        "7.jpg": "broken",
        "9.jpg": "missing",
    }
    assert len(list((tmp_path / "out").iterdir())) == 38
    # Gone on with: what is there as it was written is not touched; what is lost, cut or of another source is made.
    kept, lost, cut, other = (tmp_path / "out" / f"{n}.jpg" for n in (3, 4, 5, 6))
    before = kept.stat().st_mtime_ns
    contents = [path.read_bytes() for path in (lost, cut, other)]
    lost.unlink()
    cut.write_bytes(contents[1][:100])
    gradient(77, 50).transpose(Image.Transpose.ROTATE_180).save(tmp_path / "6.png")
    gradient(99, 50).save(tmp_path / "9.png")
    known = dict(records)
    again = prepare_images(jobs, ImageSettings(32), 1, known=lambda job: known.get(job.target), note=records.update)
    assert [Path(target).name for target in again] == ["7.jpg"]
    assert kept.stat().st_mtime_ns == before
    assert [lost.read_bytes(), cut.read_bytes()] == contents[:2]
    assert other.read_bytes() != contents[2]
    assert (tmp_path / "out" / "9.jpg").exists()


def test_a_target_that_cannot_be_written_is_not_a_broken_image(tmp_path: Path) -> None:
    gradient().save(tmp_path / "x.png")
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="out"):
        prepare_images([ImageJob(str(tmp_path / "x.png"), str(tmp_path / "out" / "x.jpg"))], ImageSettings(), 1)
