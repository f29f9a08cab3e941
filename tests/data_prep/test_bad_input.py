"""Every source given a wrong folder, a missing file, a renamed column or an unreadable archive: one clear line, nothing written.

MIMIC-CXR's are in test_data_command.py.
"""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import material
import pandas as pd
import pyarrow.parquet as pq
import pytest

from data_prep.__main__ import main


def rename_column(path: Path, old: str, new: str) -> None:
    pd.read_csv(path, dtype=str).rename(columns={old: new}).to_csv(path, index=False)


def rename_key(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert f'"{old}"' in text
    path.write_text(text.replace(f'"{old}"', f'"{new}"'))


def cut_row(path: Path) -> None:
    """The file ends within its last row."""
    path.write_text(path.read_text().rstrip().rsplit(",", 3)[0])


CHEXPERT, REXGRADIENT = "df_chexpert_plus_240401.csv", "metadata/train_metadata_view_position.json"
PROJECTIONS, TGZ = "indiana_projections.csv", "NLMCXR_reports.tgz"
# source, what is done to its folder (which may name another folder), what the line must say
MISTAKES: list[tuple[str, Callable[[Path], Path | None], tuple[str, ...]]] = [
    ("chexpert_plus", lambda root: root / "PNG", ("CheXpert Plus table not found", "df_chexpert_plus_*.csv")),
    ("chexpert_plus", lambda root: (root / CHEXPERT).unlink(), ("CheXpert Plus table not found",)),
    (
        "chexpert_plus",
        lambda root: rename_column(root / CHEXPERT, "section_findings", "findings"),
        (CHEXPERT, "column(s) section_findings missing"),
    ),
    ("chexpert_plus", lambda root: cut_row(root / CHEXPERT), (CHEXPERT, "not a readable CSV file")),
    ("chexpert_plus", lambda root: (root / CHEXPERT).write_bytes(b"\xff\xfe\0x"), (CHEXPERT,)),
    ("chexpert_plus", lambda root: root / CHEXPERT, ("CheXpert Plus table not found",)),
    ("rexgradient", lambda root: root / "deid_png", ("train_metadata_view_position.json not found",)),
    ("rexgradient", lambda root: (root / REXGRADIENT).unlink(), ("train_metadata_view_position.json not found",)),
    ("rexgradient", lambda root: rename_key(root / REXGRADIENT, "ImagePath", "Paths"), (REXGRADIENT, "ImagePath")),
    ("rexgradient", lambda root: material.truncate(root / REXGRADIENT), (REXGRADIENT, "not a readable JSON file")),
    ("rexgradient", lambda root: (root / REXGRADIENT).write_text("[]"), (REXGRADIENT, "expected a JSON object")),
    (
        "rexgradient",
        lambda root: rename_key(root / REXGRADIENT, "ImageViewPosition", "Views"),
        (REXGRADIENT, "ImageViewPosition"),
    ),
    (
        "rexgradient",
        lambda root: rename_key(root / REXGRADIENT, "Findings", "findings"),
        (REXGRADIENT, "no entry has Findings"),
    ),
    (
        "iu_xray",
        lambda root: next(p for p in root.iterdir() if p.is_dir()),
        ("no IU X-ray reports found", "NLMCXR_reports.tgz"),
    ),
    ("iu_xray", lambda root: (root / TGZ).unlink(), ("no IU X-ray reports found",)),
    ("iu_xray", lambda root: (root / PROJECTIONS).unlink(), ("views of the images not found", PROJECTIONS)),
    (
        "iu_xray",
        lambda root: rename_column(root / PROJECTIONS, "projection", "view"),
        (PROJECTIONS, "column(s) projection missing"),
    ),
    ("iu_xray", lambda root: material.truncate(root / TGZ), (TGZ, "not a readable archive")),
    ("iu_xray", lambda root: (root / TGZ).write_bytes(b"hello"), (TGZ, "not a readable archive")),
    ("iu_xray", lambda root: (root / "splits.json").write_text("{"), ("splits.json", "not a readable JSON file")),
    ("custom", lambda root: root / "images", ("table 'studies.csv' of the mapping is not a file",)),
    ("custom", lambda root: (root / "studies.csv").unlink(), ("table 'studies.csv' of the mapping is not a file",)),
    (
        "custom",
        lambda root: rename_column(root / "studies.csv", "projection", "view"),
        ("studies.csv", "column(s) projection"),
    ),
    ("custom", lambda root: cut_row(root / "studies.csv"), ("studies.csv", "not a readable CSV file")),
]


@pytest.mark.parametrize(("source", "mistake", "expected"), MISTAKES)
def test_a_mistake_is_one_clear_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture, source: str, mistake: Callable, expected: tuple[str, ...]
) -> None:
    more = {"number": 3, "archive": True} if source == "iu_xray" else {"number": 3}
    made = getattr(material, source)(tmp_path / "source", **more)
    mapping = ["--mapping", str(made.extra["mapping"])] if source == "custom" else []
    root = mistake(made.root)
    root = root if isinstance(root, Path) else made.root
    assert_refused([source, "--source", str(root), *mapping], tmp_path / "out", capsys, expected)


def assert_refused(arguments: list[str], out: Path, capsys: pytest.CaptureFixture, expected: tuple[str, ...]) -> None:
    capsys.readouterr()
    assert main([*arguments, "--out", str(out), "--workers", "1"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    for words in expected:
        assert words in lines[0]
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"a": ', ("x.json", "not a readable JSON file")),
        (b"[]", ("x.json", "expected a JSON object")),
        (b"{}", ("x.json", "holds no study")),
        (b'{"50000001": {"report": "x"}}', ("x.json", "no image_path")),
        (
            b'{"50000001": {"image_path": ["x.jpg"], "key_image_path": "x.jpg", "findings": "x"}}',
            ("x.json", "section_findings"),
        ),
        (b'{"study one": {"image_path": ["x.jpg"]}}', ("x.json", "of no data set that ReXrank has files for")),
        (b"\x89PNG", ("x.json", "not a readable JSON file")),
    ],
)
def test_a_wrong_rexrank_file(
    tmp_path: Path, capsys: pytest.CaptureFixture, content: bytes, expected: tuple[str, ...]
) -> None:
    (tmp_path / "x.json").write_bytes(content)
    arguments = ["rexrank", "--source", str(tmp_path / "x.json"), "--images", str(tmp_path)]
    assert_refused(arguments, tmp_path / "out", capsys, expected)
    assert_refused(["rexrank", "--source", str(tmp_path)], tmp_path / "out", capsys, ("is one ReXRank_*.json file",))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("studies.parquet", b"PAR1 not", "not a readable Parquet file"),
        ("studies.jsonl", b'{"accession": "1"}\n{', "line 2 is not JSON"),
        ("studies.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        ("studies.jsonl", b'{"accession": "1", "mrn": "2"}\n', "column(s) file"),
        ("studies.csv.gz", gzip.compress(b"accession,mrn\n" * 999, mtime=0)[:40], "not a readable CSV file"),
        ("studies.xlsx", b"PK", "expected a .csv, .csv.gz, .tsv, .txt, .jsonl or .parquet table"),
    ],
)
def test_a_wrong_table_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture, name: str, content: bytes, expected: str
) -> None:
    made = material.custom(tmp_path / "source", number=3)
    (made.root / name).write_bytes(content)
    mapping = made.extra["mapping"]
    mapping.write_text(mapping.read_text().replace("studies.csv", name))
    arguments = ["custom", "--source", str(made.root), "--mapping", str(mapping)]
    assert_refused(arguments, tmp_path / "out", capsys, (name, expected))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_table_of_ones_own_in_another_format_is_the_same(tmp_path: Path, suffix: str) -> None:
    made = material.custom(tmp_path / "source", number=6)
    mapping = made.extra["mapping"]
    tables = []
    for name in ("studies.csv", f"studies.{suffix}"):
        frame = pd.read_csv(made.root / "studies.csv", dtype=str)
        if name.endswith("jsonl"):
            rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
            (made.root / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif name.endswith("parquet"):
            frame.to_parquet(made.root / name)
        mapping.write_text(mapping.read_text().replace("table: studies.csv", f"table: {name}"))
        out = tmp_path / name
        arguments = ["custom", "--source", str(made.root), "--mapping", str(mapping), "--out", str(out)]
        assert main([*arguments, "--workers", "1"]) == 0
        tables.append(pq.read_table(out / "train.parquet"))
    assert tables[0].equals(tables[1])


def test_one_unreadable_report_in_a_zip_is_a_reject(tmp_path: Path) -> None:
    made = material.mimic(tmp_path / "source", zipped=True)
    archive = made.extra["reports"]
    with zipfile.ZipFile(archive) as file:
        study = sorted(s for s, e in made.kept.items() if e["split"] == "train")[0]
        info = next(i for i in file.infolist() if i.filename.endswith(f"s{study}.txt"))
    content = bytearray(archive.read_bytes())
    start = info.header_offset + 30 + len(info.filename)
    content[start : start + info.compress_size] = b"\xff" * info.compress_size
    archive.write_bytes(content)
    out = tmp_path / "out"
    arguments = ["mimic", "--source", str(made.root), "--reports", str(archive), "--validation-studies", "2"]
    assert main([*arguments, "--out", str(out), "--workers", "1"]) == 0
    rejects = {r["study_id"]: r["reason"] for r in pq.read_table(out / "rejects.parquet").to_pylist()}
    assert rejects[study] == "report_unreadable"
