"""A prepared folder: run again, changed since, of another source, linked, full disks, and what is not ours."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep import card as cards
from data_prep import prepare as preparing
from data_prep.__main__ import main
from data_prep.trial import guess_columns, propose_mapping

Y, X = np.mgrid[0:48, 0:40]
STUDIES = 6
SHAPE = ("--image-mode", "longest")  # films of their own size, to be compared with what was drawn


@pytest.fixture(autouse=True)
def no_histograms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the card's plots takes longer than all else here."""
    monkeypatch.setattr(cards, "write_plots", lambda *_: [])


def film(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).normal(0, 12, X.shape)
    return Image.fromarray((50 + 3 * X + Y + noise).clip(0, 255).astype(np.uint8))


def source(root: Path, seed: int = 0) -> Path:
    (root / "i").mkdir(parents=True)
    for number in range(STUDIES):
        film(seed + number).save(root / f"i/{number}.png")
    rows = "".join(f"a{n},p{n},i/{n}.png,Report {n} of {root.name}.\n" for n in range(STUDIES))
    (root / "t.csv").write_text("acc,mrn,file,text\n" + rows)
    mapping = (
        "table: t.csv\ncolumns: {study_id: acc, patient_id: mrn, image: file, findings: text}\nshares: [1, 0, 0]\n"
    )
    (root / "m.yaml").write_text(mapping)
    return root


def prepare(root: Path, out: Path, *more: object) -> int:
    arguments = ["custom", "--source", root, "--mapping", root / "m.yaml", "--out", out, "--workers", 1, *SHAPE, *more]
    return main([str(argument) for argument in arguments])


def train(out: Path) -> dict[str, dict]:
    return {r["study_id"]: r for r in pq.read_table(out / "train.parquet").to_pylist()}


def shown(out: Path, study: str) -> np.ndarray:
    with Image.open(out / train(out)[study]["image"]) as image:
        return np.asarray(image, dtype=float)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_changed_since_is_done_again_and_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root, out = source(tmp_path / "s"), tmp_path / "o"
    (root / "i/0.png").rename(root / "i/away.png")
    assert prepare(root, out) == 0
    assert "a0" not in train(out)
    assert prepare(root, out) == 0
    assert "nothing to do" in capsys.readouterr().out
    (root / "i/away.png").rename(root / "i/0.png")
    film(99).save(root / "i/1.png")
    untouched = out / train(out)["a2"]["image"]
    before = untouched.stat().st_mtime_ns
    assert prepare(root, out) == 0
    assert "2 images or their sources have changed since" in capsys.readouterr().out
    assert len(train(out)) == STUDIES
    assert np.abs(shown(out, "a1") - np.asarray(film(99), dtype=float)).mean() < 5
    assert untouched.stat().st_mtime_ns == before
    # A copy of the source, with other times, is the same source; a source that is taken away unmakes nothing.
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(root / "i")
    assert (
        main(
            ["custom", "--source", str(tmp_path / "copy"), "--mapping", str(root / "m.yaml"), "--out", str(out), *SHAPE]
        )
        == 0
    )
    assert "nothing to do" in capsys.readouterr().out
    assert prepare(root, out) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_folder_is_finished_only_where_its_tables_are_as_written(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root, out = source(tmp_path / "s"), tmp_path / "o"
    assert prepare(root, out) == 0
    whole = contents(out)
    other = source(tmp_path / "other", seed=50)
    assert prepare(other, tmp_path / "o2") == 0
    for damage in (
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        lambda path: shutil.copyfile(tmp_path / "o2" / path.name, path),  # whole, and another's
    ):
        damage(out / "train.parquet")
        assert main(["check", str(out)]) == 2
        capsys.readouterr()
        assert prepare(root, out) == 0
        assert "train.parquet not as written" in capsys.readouterr().out
        assert contents(out) == whole
        assert prepare(root, out) == 0
        assert "nothing to do" in capsys.readouterr().out
    pq.write_table(pq.read_table(out / "rejects.parquet"), out / "rejects.parquet", compression="none")
    assert main(["check", str(out)]) == 2
    assert "rejects.parquet not as the card has it" in capsys.readouterr().err


def test_a_merged_folder_is_finished_only_where_its_tables_are_as_written(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root, out = source(tmp_path / "s"), tmp_path / "o"
    for part in ("1/2", "2/2"):
        assert prepare(root, out, "--shard", part) == 0
    assert main(["merge", str(out)]) == 0
    whole = contents(out)
    (out / "train.parquet").write_bytes(b"x")
    assert main(["merge", str(out)]) == 0
    assert contents(out) == whole
    capsys.readouterr()
    assert main(["merge", str(out)]) == 0
    assert "already merged" in capsys.readouterr().out


def test_phantoms_are_drawn_only_where_tables_and_films_are_as_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "phantom_harbor"
    drawing = [
        "phantom",
        "--institution",
        "harbor",
        "--out",
        str(out),
        "--train",
        "3",
        "--validation",
        "0",
        "--test",
        "1",
    ]
    assert main(drawing) == 0
    whole = contents(out)
    for damage in (
        lambda: (out / "truth.parquet").write_bytes(b"x"),
        lambda: next(out.rglob("*.png")).write_bytes(b""),
        lambda: next(out.rglob("*.png")).unlink(),
    ):
        damage()
        assert main(drawing) == 0
        assert "not as drawn" in capsys.readouterr().out
        assert contents(out) == whole
    assert main(drawing) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_films_of_another_folder_are_other_films(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root, other, out = source(tmp_path / "s"), source(tmp_path / "other", 50), tmp_path / "o"
    assert prepare(root, out) == 0
    assert prepare(root, out, "--images", other) == 0
    assert f"{STUDIES} images or their sources have changed" in capsys.readouterr().out
    assert np.abs(shown(out, "a0") - np.asarray(film(50), dtype=float)).mean() < 5


def test_an_image_cut_short_or_empty_is_not_taken_for_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = source(tmp_path / "s"), tmp_path / "o"
    assert prepare(root, out) == 0
    whole = contents(out)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for finished in (True, False):
        if not finished:
            with monkeypatch.context() as patch:
                patch.setattr(preparing, "finish", interrupt)
                assert prepare(root, out, "--force") == 130
        images = sorted(out.glob("images/*/*.jpg"))
        images[0].write_bytes(b"")
        images[1].write_bytes(images[1].read_bytes()[:200])
        assert prepare(root, out) == 0
        assert contents(out) == whole


def test_the_record_of_a_run_that_was_killed_in_a_line_is_read_as_far_as_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = source(tmp_path / "s"), tmp_path / "o"
    assert prepare(root, tmp_path / "whole") == 0

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # killed while images are made: only the journal is there
        patch.setattr(preparing, "write_images", kill)
        assert prepare(root, out) == 130
    journal = out / ".images.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    (out / ".train.parquet.123.tmp").write_bytes(b"a patient's text")
    assert prepare(root, out) == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_parts_never_take_images_that_another_source_made(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first, second, out = source(tmp_path / "first"), source(tmp_path / "second", 500), tmp_path / "o"
    assert prepare(first, out) == 0
    assert prepare(second, out, "--shard", "1/2") == 2
    assert "was made from other inputs" in capsys.readouterr().err
    for part in ("1/2", "2/2"):
        assert prepare(second, out, "--shard", part, "--force") == 0
    assert main(["merge", str(out)]) == 0
    for number in range(STUDIES):
        assert train(out)[f"a{number}"]["findings"] == f"Report {number} of second."
        assert np.abs(shown(out, f"a{number}") - np.asarray(film(500 + number), dtype=float)).mean() < 5
    assert main(["check", str(out), "--images", str(second)]) == 0
    assert main(["check", str(out), "--images", str(first)]) == 2
    # An image that was overwritten between the parts and their merge.
    path = out / train(out)["a0"]["image"]
    film(3).resize((20, 20)).save(path)
    assert main(["merge", str(out), "--force"]) == 2
    assert "not as their part wrote them" in capsys.readouterr().err


def test_parts_without_patients_or_without_a_readable_film_are_empty_parts(tmp_path: Path) -> None:
    root, out = source(tmp_path / "s"), tmp_path / "o"
    (root / "i/0.png").write_bytes(b"broken")
    for part in range(1, 41):
        assert prepare(root, out, "--shard", f"{part}/40") == 0
    assert main(["merge", str(out)]) == 0
    assert len(train(out)) == STUDIES - 1
    assert prepare(root, tmp_path / "whole") == 0
    assert train(out) == train(tmp_path / "whole")


FOREIGN = {
    "folders of the same names": {"shards/mine": "x", "images/mine": "x", "plots/mine": "x"},
    "another tool's card": {"card.json": '{"name": "another"}', "images/mine": "x", "plots/mine": "x"},
    "a card that is no object": {"card.json": "[1]", "images/mine": "x"},
    "a card that is not JSON": {"card.json": "{", "images/mine": "x"},
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("shard", [False, True])
def test_a_folder_that_is_not_ours_is_left_alone_even_with_force(
    tmp_path: Path, capsys: pytest.CaptureFixture, name: str, shard: bool
) -> None:
    root, out = source(tmp_path / "s"), tmp_path / "o"
    for file, text in FOREIGN[name].items():
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        (out / file).write_text(text)
    before = contents(out)
    assert prepare(root, out, "--force", *(["--shard", "1/2"] if shard else [])) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert contents(out) == before


def test_force_deletes_what_our_record_names_and_keeps_the_rest(tmp_path: Path) -> None:
    root, out = source(tmp_path / "s"), tmp_path / "o"
    assert prepare(root, out) == 0
    mine = {"images/mine.jpg": b"1", "plots/mine.png": b"2", "thesis.txt": b"3", "shards/mine/x": b"4"}
    for file, content in mine.items():
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        (out / file).write_bytes(content)
    assert prepare(root, out, "--force", "--image-format", "png") == 0
    left = contents(out)
    assert {file: left[file] for file in mine} == mine
    assert not [file for file in left if file.endswith(".jpg") and file not in mine], "the old images are gone"


def test_linked_images_survive_force_and_a_linked_folder_is_filled_again(tmp_path: Path) -> None:
    root, out = source(tmp_path / "s"), tmp_path / "o"
    assert prepare(root, out) == 0
    shutil.move(out / "images", tmp_path / "big_disk")
    (out / "images").symlink_to(tmp_path / "big_disk")
    assert prepare(root, out, "--force") == 0
    assert (out / "images").is_symlink()
    assert main(["check", str(out)]) == 0


def test_validation_is_drawn_among_what_can_be_used(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root, out = source(tmp_path / "s"), tmp_path / "o"
    for number in (0, 1):
        (root / f"i/{number}.png").unlink()
    (root / "i/2.png").write_bytes(b"broken")
    assert prepare(root, out, "--validation-studies", 2) == 0
    assert pq.read_table(out / "validation.parquet").num_rows == 2
    assert len(train(out)) == 1
    notes = " ".join(json.loads((out / "card.json").read_text())["notes"])
    assert "4 of 6 key images are in the image folder" in notes
    assert "2 training studies set aside" in notes
    assert prepare(root, tmp_path / "o2", "--validation-studies", 5) == 2
    assert "cannot set 5 of 4 training studies aside" in capsys.readouterr().err


def test_all_names_are_looked_for_before_the_image_folder_is_called_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = tmp_path / "s"
    source(root)
    rows = "".join(f"b{n},q{n},i/none{n}.png,Clear.\n" for n in range(400))
    (root / "t.csv").write_text((root / "t.csv").read_text().replace("text\n", "text\n" + rows))
    assert prepare(root, tmp_path / "o") == 0
    assert len(train(tmp_path / "o")) == STUDIES
    shutil.rmtree(root / "i")
    assert prepare(root, tmp_path / "o2") == 2
    assert "none of 406 images" in capsys.readouterr().err


def test_a_full_disk_at_the_first_write_locks_nobody_out(tmp_path: Path) -> None:
    root, out = source(tmp_path / "s"), tmp_path / "o"

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))

    command = ["custom", "--source", root, "--mapping", root / "m.yaml", "--out", out, "--workers", 1]
    done = subprocess.run(
        [sys.executable, "-B", "-m", "data_prep", *map(str, command)], preexec_fn=limit, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not list(out.rglob("*.tmp"))
    assert prepare(root, out) == 0


def test_the_contact_sheet_has_the_films_of_least_and_most_contrast(tmp_path: Path) -> None:
    root, out = source(tmp_path / "s"), tmp_path / "o"
    faint = (100 + np.asarray(film(0), dtype=float) / 12).astype(np.uint8)
    Image.fromarray(faint).save(root / "i/0.png")
    assert prepare(root, out) == 0
    with Image.open(out / "plots/sample.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert tuple(pixels[0, 0]) == (230, 80, 60), "the first is that of least contrast, framed in red"
    assert pixels[50:80, 50:80].std() < 20
    assert "![sample](plots/sample.png)" in (out / "card.md").read_text()


def test_a_first_look_proposes_a_mapping_and_prepares_a_sample(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = source(tmp_path / "s")
    (root / "m.yaml").unlink()
    rows = "".join(f"1;p{n};i/{n}.png;Informe {n}.;{n + 1}/12/2020 10:30;Lado;x\n" for n in range(STUDIES))
    (root / "t.csv").write_bytes(("Estudio;NHC;Fichero;Informe;Fecha;Proyección;Otro\n" + rows).encode("latin-1"))
    proposal, lacking = propose_mapping(root, root)
    assert not lacking
    assert "study_id: [NHC, Estudio]" in proposal, "numbers repeat from patient to patient"
    assert "datetime_format: '%d/%m/%Y %H:%M'" in proposal
    assert "'%m/%d/%Y %H:%M' reads all" in proposal.replace("# %m/%d/%Y %H:%M reads", "'%m/%d/%Y %H:%M' reads")
    assert "not used: Otro" in proposal
    assert main(["try", "--source", str(root), "--workers", "1"]) == 2, "no film is known to be frontal"
    mapping = tmp_path / "m.yaml"
    mapping.write_text(proposal + "values: {view: {Lado: PA}}\n")
    capsys.readouterr()
    assert main(["try", "--source", str(root), "--mapping", str(mapping), "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert f"{STUDIES} studies kept" in said
    place = Path(said.split("rm -r ")[-1].strip())
    assert (place / "prepared/plots/sample.png").is_file()
    assert place.stat().st_mode & 0o077 == 0
    shutil.rmtree(place)
    (root / "t.csv").write_text("acc,text\n1,x\n")
    assert main(["try", "--source", str(root)]) == 2
    assert "name the column(s) for patient_id, image" in capsys.readouterr().err
    assert guess_columns(["Accession Number", "PatientID", "Image_Path"]) == {
        "study_id": "Accession Number",
        "patient_id": "PatientID",
        "image": "Image_Path",
    }
