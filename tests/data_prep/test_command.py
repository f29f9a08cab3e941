"""The command line: users' mistakes, running again, interruption, shards, dry run, check."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import material
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import prepare as preparing
from data_prep.__main__ import main


@pytest.fixture(scope="module")
def mimic(tmp_path_factory: pytest.TempPathFactory) -> material.Material:
    return material.mimic(tmp_path_factory.mktemp("mimic") / "source")


def command(made: material.Material, out: Path, *more: object) -> list[str]:
    return [
        "mimic",
        "--source",
        str(made.root),
        "--out",
        str(out),
        "--validation-studies",
        "4",
        "--workers",
        "1",
        *map(str, more),
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "shards" not in p.parts
    }


def test_running_twice_gives_the_same_bytes(
    mimic: material.Material, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("a", "b"):
        assert main(command(mimic, tmp_path / name)) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*")}
    capsys.readouterr()
    assert main(command(mimic, tmp_path / "a")) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*")}
    assert main(command(mimic, tmp_path / "a", "--force")) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_other_options_or_input_are_refused_unless_forced(
    mimic: material.Material, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = material.Material(tmp_path / "source")
    shutil.copytree(mimic.root, source.root)
    out = tmp_path / "out"
    assert main(command(source, out)) == 0
    before = contents(out)
    assert main(command(source, out, "--image-size", "64")) == 2
    assert "other options" in capsys.readouterr().err
    split = pd.read_csv(source.root / "mimic-cxr-2.0.0-split.csv.gz", dtype=str)
    split.iloc[::-1].to_csv(source.root / "mimic-cxr-2.0.0-split.csv.gz", index=False)
    assert main(command(source, out)) == 2
    assert "other inputs" in capsys.readouterr().err
    assert contents(out) == before
    assert main(command(source, out, "--image-size", "64", "--force")) == 0
    assert main(["check", str(out)]) == 0


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    mimic: material.Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(command(mimic, tmp_path / "whole")) == 0
    out = tmp_path / "out"

    def interrupt(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # stopped after the images
        patch.setattr(preparing, "finish", interrupt)
        assert main(command(mimic, out)) == 130
    assert not (out / "card.json").exists(), "only a whole folder has a card"
    images = sorted(out.rglob("*.jpg"))
    images[0].unlink()
    times = {p: p.stat().st_mtime_ns for p in images[1:]}
    assert main(command(mimic, out, "--image-size", "64")) == 2, "other options do not go on with these images"
    assert main(command(mimic, out)) == 0
    assert {p: p.stat().st_mtime_ns for p in times} == times, "finished images are kept"
    assert contents(out) == contents(tmp_path / "whole")


def test_shards_merge_to_the_same_bytes(
    mimic: material.Material, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(command(mimic, tmp_path / "whole")) == 0
    out = tmp_path / "parts"
    for part in ("1/3", "2/3"):
        assert main(command(mimic, out, "--shard", part)) == 0
    assert main(["merge", str(out)]) == 2
    assert "3/3 not finished" in capsys.readouterr().err
    assert main(command(mimic, out)) == 2, "parts are not overwritten by a whole run"
    assert main(command(mimic, out, "--shard", "3/3")) == 0
    assert main(["merge", str(out)]) == 0
    assert contents(out) == contents(tmp_path / "whole")
    assert main(["check", str(out)]) == 0
    assert main(command(mimic, out)) == 0, "a merged folder is the prepared folder"
    assert "nothing to do" in capsys.readouterr().out


def test_parts_made_with_other_options_do_not_share_a_folder(
    mimic: material.Material, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert main(command(mimic, out, "--shard", "1/2")) == 0
    for other in (("2/2", "--image-size", "64"), ("1/3",)):
        assert main(command(mimic, out, "--shard", *other)) == 2
        assert "1-of-2 was made from other" in capsys.readouterr().err
    assert main(command(mimic, out, "--shard", "1/3", "--image-size", "64", "--force")) == 0
    assert sorted(p.name for p in (out / "shards").iterdir()) == ["1-of-3"], "a part of other options is replaced"
    for part in ("2/3", "3/3"):
        assert main(command(mimic, out, "--shard", part, "--image-size", "64")) == 0
    assert main(["merge", str(out)]) == 0
    assert main(["check", str(out), "--images", str(mimic.root)]) == 0
    assert main(command(mimic, tmp_path / "whole", "--image-size", "64")) == 0
    kept = set(pq.read_table(out / "train.parquet").column("image").to_pylist())
    assert {name: contents(out)[name] for name in kept} == {name: contents(tmp_path / "whole")[name] for name in kept}
    # A whole folder of other options: its images lie where the parts' would.
    assert main(command(mimic, tmp_path / "whole", "--shard", "1/2")) == 2
    assert "whole was made from other options" in capsys.readouterr().err


def test_an_image_of_another_study_is_seen_by_check(
    mimic: material.Material, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert main(command(mimic, out)) == 0
    assert main(["check", str(out), "--images", str(mimic.root)]) == 0
    assert "as they were made from these sources" in capsys.readouterr().out
    one, other = pq.read_table(out / "train.parquet").column("image").to_pylist()[:2]
    content = (out / one).read_bytes()
    (out / one).write_bytes((out / other).read_bytes())
    assert main(["check", str(out)]) == 2
    assert "not what was made for their study" in capsys.readouterr().err
    capsys.readouterr()
    assert main(command(mimic, out)) == 0
    assert "1 images or their sources have changed" in capsys.readouterr().out
    assert (out / one).read_bytes() == content
    assert main(["check", str(out)]) == 0


def test_dry_run_writes_nothing_and_says_what_it_would(
    mimic: material.Material, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(command(mimic, tmp_path / "out", "--dry-run")) == 0
    said = capsys.readouterr().out
    assert "wrote nothing" in said
    assert "usable" in said
    assert not (tmp_path / "out").exists()


def mistake(tmp_path: Path, name: str) -> list[str]:
    """A command line with one mistake."""
    made = material.mimic(tmp_path / "source", number=12)
    arguments = command(made, tmp_path / "out")
    metadata = made.root / "mimic-cxr-2.0.0-metadata.csv.gz"
    if name == "no folder":
        arguments[2] = str(tmp_path / "nowhere")
    elif name == "wrong folder":
        arguments[2] = str(made.root / "files")
    elif name == "missing table":
        (made.root / "mimic-cxr-2.0.0-split.csv.gz").unlink()
    elif name == "renamed column":
        pd.read_csv(metadata, dtype=str).rename(columns={"StudyDate": "Date"}).to_csv(metadata, index=False)
    elif name == "cut gzip":
        material.truncate(metadata)
    elif name == "not gzip":
        metadata.write_bytes(b"hello")
    elif name == "empty table":
        metadata.write_bytes(b"")
        metadata.rename(made.root / "mimic-cxr-2.0.0-metadata.csv")
    elif name == "no reports":
        shutil.rmtree(made.root / "reports")
    elif name == "broken zip":
        (made.root / "reports.zip").write_bytes(b"PK not a zip")
        arguments += ["--reports", str(made.root / "reports.zip")]
    elif name == "wrong image folder":
        (tmp_path / "images").mkdir()
        arguments += ["--images", str(tmp_path / "images")]
    elif name == "bad image mode":
        arguments += ["--image-mode", "sideways"]
    elif name == "too many validation studies":
        arguments += ["--validation-studies", "4000"]
    elif name == "no demographics":
        arguments += ["--mimic-iv", str(made.root)]
    elif name == "rexrank of another data set":
        other = material.chexpert_plus(tmp_path / "other", number=3)
        arguments += ["--rexrank", str(other.extra["rexrank"])]
    elif name == "not a rexrank file":
        (tmp_path / "x.json").write_text("[1]")
        arguments += ["--rexrank", str(tmp_path / "x.json")]
    elif name == "output is something else":
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("years of work")
        arguments += ["--force"]
    elif name == "leaking split":
        split = pd.read_csv(made.root / "mimic-cxr-2.0.0-split.csv.gz", dtype=str)
        study = next(s for s, e in made.kept.items() if e["split"] == "test")
        patient = made.kept[next(s for s, e in made.kept.items() if e["split"] == "train")]["patient_id"]
        table = pd.read_csv(metadata, dtype=str)
        for frame, path in ((split, made.root / "mimic-cxr-2.0.0-split.csv.gz"), (table, metadata)):
            old = frame.loc[frame["study_id"] == study, "subject_id"].iloc[0]
            frame.loc[frame["study_id"] == study, "subject_id"] = patient
            frame.to_csv(path, index=False)
        for kind, suffix in (("files", ""), ("reports/files", ".txt")):
            source = made.root / kind / f"p{old[:2]}" / f"p{old}" / f"s{study}{suffix}"
            target = made.root / kind / f"p{patient[:2]}" / f"p{patient}" / f"s{study}{suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)
    return arguments


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("no folder", "nowhere: no such file or folder"),
        ("wrong folder", "metadata table not found"),
        ("missing table", "split table not found"),
        ("renamed column", "column(s) StudyDate missing"),
        ("cut gzip", "metadata.csv.gz: not a readable CSV file"),
        ("not gzip", "metadata.csv.gz: not a readable CSV file"),
        ("empty table", "metadata.csv: empty"),
        ("no reports", "give --reports"),
        ("broken zip", "reports.zip: not a readable zip archive"),
        ("wrong image folder", "give --images"),
        ("bad image mode", "letterbox"),
        ("too many validation studies", "--validation-studies"),
        ("no demographics", "patients table not found"),
        ("rexrank of another data set", "of chexpert_plus, not of mimic"),
        ("not a rexrank file", "x.json: expected a JSON object"),
        ("output is something else", "holds no prepared data"),
        ("leaking split", "in test and train"),
    ],
)
def test_a_mistake_is_one_clear_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture, name: str, expected: str
) -> None:
    arguments = mistake(tmp_path, name)
    assert main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert expected in lines[0]
    if name == "output is something else":
        assert contents(tmp_path / "out") == {"thesis.txt": b"years of work"}
    else:
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("accession", "number"), "column(s) number missing"),
        (("  image: file\n", ""), "image must be named"),
        (("  sex: gender", "  gender: gender"), "unknown key gender"),
        (("datetime_format", "date_format"), "unknown key date_format"),
        (("%d.%m.%Y %H:%M", "%Y"), "set datetime_format"),
        (("{dev: validation}", "{}"), "split 'dev'"),
        (("studies.csv", "../studies.csv"), "not a file below it"),
        (("columns:", "columns: ["), "not a readable YAML"),
    ],
)
def test_a_wrong_mapping_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, change: tuple, expected: str
) -> None:
    made = material.custom(tmp_path / "source", number=3)
    mapping = made.extra["mapping"].read_text()
    assert change[0] in mapping
    made.extra["mapping"].write_text(mapping.replace(*change))
    arguments = [
        "custom",
        "--source",
        str(made.root),
        "--mapping",
        str(made.extra["mapping"]),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(arguments) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mimic", "name of a public data set"),
        ("chexpert_plus", "name of a public data set"),
        ("rexgradient", "name of a public data set"),
        ("iu_xray", "name of a public data set"),
        ("IU_Xray", "name of a public data set"),
        ("phantom_harbor", "name of a public data set or of phantoms"),
        ("../ours", "letters, digits"),
        ("our hospital", "letters, digits"),
    ],
)
def test_a_private_set_does_not_go_by_a_public_ones_name(
    tmp_path: Path, capsys: pytest.CaptureFixture, name: str, expected: str
) -> None:
    made = material.custom(tmp_path / "source", number=3)
    arguments = ["custom", "--source", str(made.root), "--mapping", str(made.extra["mapping"])]
    out = tmp_path / "out"
    assert main([*arguments, "--out", str(out), "--name", name]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not out.exists()
    assert main([*arguments, "--out", str(out), "--name", "our_hospital"]) == 0
    assert set(pq.read_table(out / "train.parquet").column("dataset").to_pylist()) == {"our_hospital"}


def test_a_path_that_leaves_the_source_is_rejected(tmp_path: Path) -> None:
    made = material.custom(tmp_path / "source", number=6)
    material.frontal(material.phantoms(1)[0]).save(tmp_path / "secret.png")
    table = pd.read_csv(made.root / "studies.csv", dtype=str)
    study = next(iter(made.kept))
    table.loc[(table["accession"] == study) & (table["projection"] != "Thorax lateral"), "file"] = "../secret.png"
    table.to_csv(made.root / "studies.csv", index=False)
    arguments = [
        "custom",
        "--source",
        str(made.root),
        "--mapping",
        str(made.extra["mapping"]),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(arguments) == 0
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert {r["study_id"]: r["reason"] for r in rejects}[study] == "path_outside"


def test_a_users_text_in_a_card_is_escaped(tmp_path: Path) -> None:
    made = material.custom(tmp_path / "source", number=4)
    mapping = made.extra["mapping"].read_text()
    made.extra["mapping"].write_text(mapping.replace("title: Chest radiographs", "title: <script>radiographs"))
    arguments = [
        "custom",
        "--source",
        str(made.root),
        "--mapping",
        str(made.extra["mapping"]),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(arguments) == 0
    card = (tmp_path / "out" / "card.md").read_text()
    assert "<script>" not in card
    assert "script>radiographs" in card


@pytest.fixture
def folder(mimic: material.Material, tmp_path: Path) -> Path:
    assert main(command(mimic, tmp_path / "out")) == 0
    return tmp_path / "out"


def rewrite(path: Path, **columns: object) -> None:
    """Change the first row of a table (or all, given a list)."""
    table = pq.read_table(path)
    for name, value in columns.items():
        values = table.column(name).to_pylist()
        values[0] = value
        table = table.set_column(
            table.column_names.index(name), table.schema.field(name), pa.array(values, table.schema.field(name).type)
        )
    pq.write_table(table, path)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda folder: next(folder.rglob("*.jpg")).unlink(), "missing"),
        (lambda folder: material.truncate(next(folder.rglob("*.jpg"))), "cannot be read"),
        (
            lambda folder: material.frontal(material.phantoms(1)[0], 900, 800).save(next(folder.rglob("*.jpg"))),
            "900×800",
        ),
        (
            lambda folder: material.frontal(material.phantoms(1)[0]).convert("RGB").save(next(folder.rglob("*.jpg"))),
            "mode RGB",
        ),
        (lambda folder: (folder / "test.parquet").unlink(), "test.parquet"),
        (lambda folder: (folder / "card.json").unlink(), "card.json"),
        (lambda folder: (folder / "rejects.parquet").write_bytes(b"x"), "rejects.parquet"),
        (lambda folder: rewrite(folder / "train.parquet", split="test"), "says it is test"),
        (lambda folder: rewrite(folder / "train.parquet", view="lateral"), "view 'lateral'"),
        (lambda folder: rewrite(folder / "train.parquet", image="../../x.jpg"), "leaves the folder"),
        (
            lambda folder: rewrite(
                folder / "test.parquet", patient_id=pq.read_table(folder / "train.parquet")["patient_id"][0].as_py()
            ),
            "in test and train",
        ),
    ],
)
def test_check_finds(folder: Path, capsys: pytest.CaptureFixture, damage, expected: str) -> None:
    damage(folder)
    assert main(["check", str(folder)]) == 2
    assert expected in capsys.readouterr().err


def test_check_finds_a_prior_report_that_is_not_its_priors(folder: Path, capsys: pytest.CaptureFixture) -> None:
    table = pq.read_table(folder / "train.parquet")
    reports = ["Findings: another." if report else None for report in table["prior_report"].to_pylist()]
    assert any(reports)
    position = table.column_names.index("prior_report")
    pq.write_table(
        table.set_column(position, table.schema.field("prior_report"), pa.array(reports, pa.string())),
        folder / "train.parquet",
    )
    assert main(["check", str(folder)]) == 2
    assert "prior_report" in capsys.readouterr().err


def test_the_card_counts_what_the_tables_hold(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text())
    for split in ("train", "validation", "test"):
        table = pq.read_table(folder / f"{split}.parquet").to_pandas()
        described = card["splits"][split]
        assert described["studies"] == len(table)
        assert described["patients"] == table["patient_id"].nunique()
        assert described["sections"]["findings only"] == (table["findings"].notna() & table["impression"].isna()).sum()
        assert described["views"].get("AP", 0) == (table["view"] == "AP").sum()
        assert sum(e["studies"] for e in described["encounters"].values()) == len(table)
        assert sum(e["with prior"] for e in described["encounters"].values()) == table["prior_study_id"].notna().sum()
    rejects = pq.read_table(folder / "rejects.parquet").to_pandas()
    assert card["reject_reasons"] == rejects["reason"].value_counts().to_dict()
    assert card["credentialed"] is True
    assert str(folder) not in json.dumps(card), "no path of this machine"
    text = (folder / "card.md").read_text()
    assert f"{card['found']} studies found = {card['kept']} kept + {card['rejected']} rejected" in text
    for name in ("section_lengths", "encounters"):
        assert (folder / "plots" / f"{name}.png").stat().st_size > 1000


def test_phantoms_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "phantom_harbor"
    arguments = [
        "phantom",
        "--institution",
        "harbor",
        "--seed",
        "7",
        "--out",
        str(out),
        "--train",
        "6",
        "--validation",
        "2",
        "--test",
        "3",
    ]
    assert main(arguments) == 0
    assert pq.read_table(out / "train.parquet").num_rows == 6
    assert pq.read_table(out / "truth.parquet").num_rows == 11
    assert main(["check", str(out)]) == 0
    capsys.readouterr()
    assert main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main([*arguments[:3], "--seed", "8", *arguments[5:]]) == 2
    assert "other seed" in capsys.readouterr().err
    assert main([*arguments[:3], "--seed", "8", *arguments[5:], "--force"]) == 0
    assert main(["phantom", "--institution", "atlantis", "--out", str(tmp_path / "x")]) == 2
    assert "atlantis" in capsys.readouterr().err
