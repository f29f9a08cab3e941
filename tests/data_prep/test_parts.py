"""Parts made with --shard: each reads its own patients' reports, and together they are the folder of one run, to the byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import material
import pyarrow.parquet as pq
import pytest

from data_prep import card as cards
from data_prep.__main__ import main
from data_prep.parts import Counted, Shard, recorded, said, together


@pytest.fixture(autouse=True)
def no_histograms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the card's plots takes longer than all else here."""
    monkeypatch.setattr(cards, "write_plots", lambda *_: [])


def mimic(root: Path) -> list[object]:
    """Some reports missing or cut, some films missing, a study without a date."""
    made = material.mimic(root)
    reports = sorted(root.rglob("s*.txt"))
    reports[1].unlink()
    reports[4].write_bytes(b"\xff\xfe\xff")
    for film in sorted(root.rglob("*.jpg"))[::5]:
        film.unlink()
    return ["mimic", made.root, "--validation-studies", 2]


def mimic_rexrank(root: Path) -> list[object]:
    made = material.mimic(root, zipped=True)
    entries = json.loads(made.extra["rexrank"].read_text())
    material.write_json(made.extra["rexrank"], dict(list(entries.items())[::2]))
    return ["mimic", made.root, "--validation-studies", 2, "--rexrank", made.extra["rexrank"]]


def chexpert_plus(root: Path) -> list[object]:
    return ["chexpert_plus", material.chexpert_plus(root).root, "--priors", "--validation-studies", 2]


def rexgradient(root: Path) -> list[object]:
    return ["rexgradient", material.rexgradient(root).root]


def iu_xray(root: Path) -> list[object]:
    return ["iu_xray", material.iu_xray(root).root]


def iu_xray_with_a_split(root: Path) -> list[object]:
    made = material.iu_xray(root, archive=True)
    found = sorted({path.name.split(".")[0].rsplit("-", 1)[0] for path in root.rglob("CXR*.png")})
    material.write_json(root / "splits.json", {"train": found[::2], "test": found[1::2]})
    return ["iu_xray", made.root]


def custom(root: Path) -> list[object]:
    """A study's report in another row, two reports of one study, blank cells, words that are not known, a film that is not
    there; the split is made here."""
    (root / "i").mkdir(parents=True)
    rows = []
    for number in range(14):
        if number != 5:
            material.save(material.frontal(material.phantoms(14)[number]), root / f"i/{number}.png")
        text = f"Findings: lungs are clear ({number}). Impression: normal."
        sex = ("F", "M", "unclear")[number % 3]
        visit, mrn = number % 2, f"m{number // 2}"
        rows.append(f"{mrn},{visit},i/{number}.png,PA,{'' if number in (3, 8, 9) else text},{sex}")
        if number in (3, 6):
            rows.append(f"{mrn},{visit},,,Findings: another text of {number}.,{sex}")
    (root / "t.csv").write_text("mrn,visit,file,view,text,sex\n" + "\n".join(rows) + "\n")
    (root / "m.yaml").write_text(
        "table: t.csv\ncolumns: {study_id: [mrn, visit], patient_id: mrn, image: file, view: view, report: text, sex: sex}\n"
        "shares: [6, 2, 2]\n"
    )
    return ["custom", root, "--mapping", root / "m.yaml"]


def prepare(arguments: list[object], out: Path, *more: object) -> int:
    dataset, source, *rest = arguments
    given = [dataset, "--source", source, "--out", out, "--workers", 1, "--image-size", 64, *rest, *more]
    return main([str(argument) for argument in given])


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "shards" not in path.parts
    }


@pytest.mark.parametrize(
    "source", [mimic, mimic_rexrank, chexpert_plus, rexgradient, iu_xray, iu_xray_with_a_split, custom]
)
def test_parts_are_together_what_one_run_makes(tmp_path: Path, source: Callable[[Path], list[object]]) -> None:
    arguments = source(tmp_path / "source")
    assert prepare(arguments, tmp_path / "whole") == 0
    for part in ("2/3", "1/3", "3/3"):
        assert prepare(arguments, tmp_path / "parts", "--shard", part) == 0
    assert main(["merge", str(tmp_path / "parts")]) == 0
    whole, parts = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    assert parts.pop("card.json").decode() == whole.pop("card.json").decode()
    assert parts == whole
    assert len(list((tmp_path / "parts/images").rglob("*.jpg"))) > 3


def test_a_part_reads_no_report_of_another(tmp_path: Path) -> None:
    root = tmp_path / "source"
    arguments = mimic(root)
    assert prepare(arguments, tmp_path / "parts", "--shard", "1/2") == 0
    tables = sorted((tmp_path / "parts/shards/1-of-2").glob("*.parquet"))
    before = {path.name: path.read_bytes() for path in tables}
    assert pq.read_table(tmp_path / "parts/shards/1-of-2/train.parquet").num_rows
    others = [path for path in root.rglob("s*.txt") if not Shard(1, 2).has(path.parent.name.removeprefix("p"))]
    assert others
    for path in others:
        path.unlink()
        path.mkdir()  # whoever reads it stops
    assert prepare(arguments, tmp_path / "parts", "--shard", "1/2", "--force") == 0
    assert {path.name: path.read_bytes() for path in tables} == before


def test_images_of_which_none_is_there_are_told_by_every_part(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = mimic(tmp_path / "source")
    for film in (tmp_path / "source").rglob("*.jpg"):
        film.unlink()
    for part in ("1/3", "3/3"):
        assert prepare(arguments, tmp_path / "parts", "--shard", part) == 2
        assert "images looked for is there" in capsys.readouterr().err


def test_what_cannot_be_set_aside_is_told_before_the_images_of_any_part(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = [*mimic(tmp_path / "source")[:2], "--validation-studies", 500]
    assert prepare(arguments, tmp_path / "parts", "--shard", "1/3") == 2
    assert "cannot set 500 of" in capsys.readouterr().err
    assert not list((tmp_path / "parts").rglob("*.jpg"))


def test_numbers_of_a_note_add_up_and_a_note_of_none_is_left_out() -> None:
    one = ["plain", Counted("{0:,} of {1:,} {{braces}}", (0, 7)), Counted("{0} dates", (0,), always=True)]
    other = ["plain", Counted("{0:,} of {1:,} {{braces}}", (2, 1500)), Counted("{0} dates", (0,), always=True)]
    assert said(one) == ["plain", "0 dates"]
    parts = [json.loads(json.dumps(recorded(notes))) for notes in (one, other)]
    assert together(parts) == ["plain", "2 of 1,507 {braces}", "0 dates"]
    with pytest.raises(ValueError, match="plain"):
        together([["plain"], ["another"]])
