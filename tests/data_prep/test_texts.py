"""Reports on disk while studies are prepared, and index files read a piece at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_prep.sections import SECTIONS
from data_prep.source import iterate_json
from data_prep.tables import SourceError, iterate_csv, read_csv
from data_prep.texts import Texts


def test_reports_come_back_by_number_in_any_order() -> None:
    texts = Texts()
    first = texts.add([{"findings": "No  change.\nClear.", "impression": "Größer ≥ 3 mm"}, {}])
    second = texts.add([{"indication": "cough", "comparison": "  ", "findings": "", "view": "AP"}])
    assert first["findings_words"].tolist() == [3, 0]
    assert first["impression_words"].tolist() == [4, 0]
    numbers = [*second["text"], *first["text"]]
    empty = (None,) * len(SECTIONS)
    assert texts.get([*numbers, 0]) == [
        ("cough", None, None, None),
        (None, None, "No  change.\nClear.", "Größer ≥ 3 mm"),
        empty,
        empty,
    ]
    assert texts.get(np.array(numbers[:1])) == [("cough", None, None, None)]


def test_a_full_disk_for_temporary_files_is_said(tmp_path: Path) -> None:
    # A limit on the size of a file stands for the full disk: it needs no other rights.
    program = """
import resource
from data_prep.texts import Texts
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    Texts().add({"findings": f"{n} " * 9999} for n in range(1000))
except OSError as error:
    print(f"{error.filename}: {error.strerror}")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("temporary files: ")
    assert "TMPDIR" in done.stdout


def test_a_json_object_is_read_entry_by_entry(tmp_path: Path) -> None:
    path = tmp_path / "many.json"
    entries = {f"stüdy {n}": {"text": f"ß{n} " * (n % 400), "views": [n, None], "age": n / 7} for n in range(8000)}
    for indent in (None, 1):
        path.write_text(json.dumps(entries, indent=indent, ensure_ascii=False), encoding="utf-8")
        assert path.stat().st_size > 3 << 20, "several blocks"
        assert dict(iterate_json(path)) == entries
    path.write_text('{"a": NaN, "b": 12}\n')
    assert dict(iterate_json(path)) == {"a": None, "b": 12}
    path.write_text(" {} ")
    assert dict(iterate_json(path)) == {}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[1]", "expected a JSON object"),
        ("", "expected a JSON object"),
        ('{"a": {"b": 1}', "not a readable JSON file"),
        ('{"a": {"b": ', "not a readable JSON file"),
        ('{"a" 1}', "not a readable JSON file"),
        ('{"a": 1 "b": 2}', "not a readable JSON file"),
        ('{"a": 1} x', "not a readable JSON file"),
    ],
)
def test_a_damaged_json_file_is_one_clear_line(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(SourceError, match=expected) as raised:
        list(iterate_json(path))
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_csv_file_is_read_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    frame = pd.DataFrame({"id": [f"s{n}" for n in range(9000)], "text": [f'"a", {n}\nb ' * 30 for n in range(9000)]})
    frame.to_csv(path, index=False)
    pieces = list(iterate_csv(path, ["text", "id"]))
    assert len(pieces) > 3
    assert max(map(len, pieces)) < 9000
    assert pd.concat(pieces)["text"].tolist() == frame["text"].tolist()
    path.write_text("id,text\n")
    assert read_csv(path, ["id"]).empty


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_studies() -> None:
    command = [sys.executable, "-m", "benchmarks.bench_data", "memory", "--small", "10000", "--large", "40000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).resolve().parents[2])
    measured = json.loads(done.stdout)["memory"]
    # Identifiers, dates and paths stay; one report alone is more than this.
    assert measured["main KiB a study"] < 1.2, measured
    assert measured["worker growth MiB"] < 16, measured
