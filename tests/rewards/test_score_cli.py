"""`python -m rewards score`: rows and summary out, and one clear line for a user's mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from random_weights import write_weights
from synthetic_reports import reports

from rewards.__main__ import main

OFFLINE = ["--backend", "offline"]
GOOD = {"id": "a", "candidate": "No edema.", "reference": "Small effusion."}


def _write(path: Path, rows: Sequence[object]) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    texts = zip(reports(9, seed=1), reports(9, seed=2), strict=True)
    rows = [{"id": f"study-{i}", "candidate": c, "reference": r} for i, (c, r) in enumerate(texts)]
    rows.append({"id": 7, "candidate": "", "reference": "None", "more": [1]})
    return _write(tmp_path / "pairs.jsonl", rows)


def test_offline_scores_carry_the_stand_ins_names(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "new" / "scores.jsonl"
    command = ["score", "--pairs", str(pairs), "--out", str(out), "--metrics", "bleu2,sembscore,radcliq_v1", *OFFLINE]
    assert main([*command, "--labels"]) == 0
    rows = _rows(out)
    assert [row["id"] for row in rows] == [f"study-{i}" for i in range(9)] + [7]
    names = {"bleu2", "sembscore[offline-rules]", "radcliq_v1[offline-hash+offline-rules]"}
    assert all(set(row) == {"id", *names} for row in rows)
    summary = json.loads((tmp_path / "new" / "scores.summary.json").read_text())
    assert summary["n"] == 10
    for name, entry in summary["metrics"].items():
        values = [row[name] for row in rows]
        assert entry["mean"] == pytest.approx(sum(values) / len(values), abs=1e-6)
        assert entry["low"] < entry["mean"] < entry["high"]
        assert len(entry["fingerprint"]) >= 64
    assert set(summary["metrics"]) == names
    assert summary["labels"]["labeler"] == "chexbert[offline-rules]"
    assert 0 < summary["labels"]["uncertain_is_positive"]["micro_14"] < 1
    printed = capsys.readouterr().out
    assert "sembscore[offline-rules]" in printed
    assert not [line for line in printed.splitlines() if line.startswith(("sembscore ", "radcliq_v1 "))]
    assert sorted(path.name for path in out.parent.iterdir()) == ["scores.jsonl", "scores.summary.json"]


def test_real_scores_on_weights_in_the_published_format(pairs: Path, tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "weights")
    out = tmp_path / "scores.jsonl"
    assert (
        main(
            [
                "score",
                "--pairs",
                str(pairs),
                "--out",
                str(out),
                "--weights",
                str(weights),
                "--cache",
                str(tmp_path / "cache"),
            ]
        )
        == 0
    )
    first = _rows(out)
    assert set(first[0]) == {"id", "bleu2", "bertscore", "sembscore", "radgraph", "radcliq_v1"}
    again = tmp_path / "again.jsonl"
    assert (
        main(
            [
                "score",
                "--pairs",
                str(pairs),
                "--out",
                str(again),
                "--weights",
                str(weights),
                "--cache",
                str(tmp_path / "cache"),
            ]
        )
        == 0
    )
    assert _rows(again) == first
    text = (tmp_path / "cache" / "scores.sqlite").read_bytes()
    assert b"costophrenic angle" not in text  # whole reports are kept as hashes only


def test_bleu_alone_needs_no_weights(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.jsonl"
    assert main(["score", "--pairs", str(pairs), "--out", str(out), "--metrics", "bleu2", "--weights", "nowhere"]) == 0
    assert len(_rows(out)) == 10


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, {"candidate": "x", "reference": "y"}], "line 2: no id"),
        ([GOOD, {"id": True, "candidate": "x", "reference": "y"}], "line 2: no id"),
        ([GOOD, "{not json"], "line 2: not JSON"),
        ([GOOD, "[1, 2]"], "line 2: not a JSON object"),
        ([GOOD, "", {"id": "b", "reference": "y"}], "line 3 (id 'b'): candidate is missing"),
        ([GOOD, {"id": "b", "candidate": "x", "reference": None}], "line 2 (id 'b'): reference is missing"),
        ([GOOD, {**GOOD, "candidate": "z"}], "line 2: id 'a' is also on line 1"),
        ([], "has no rows"),
        ([GOOD, {"id": 1.5, "candidate": "x", "reference": "y"}], "line 2: no id"),
        ([GOOD, '{"id": ' + "9" * 5000 + "}"], "line 2: not JSON"),
        ([GOOD, "[" * 100_000], "line 2: not JSON"),
        ([GOOD, '{"id": "b", "candidate": "\\ud800 edema", "reference": "x"}'], "candidate has half a character"),
        ([GOOD, '{"id": "\\udfff", "candidate": "x", "reference": "x"}'], "id has half a character"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture, rows: list, message: str
) -> None:
    path = _write(tmp_path / "pairs.jsonl", rows)
    assert main(["score", "--pairs", str(path), "--out", str(tmp_path / "out.jsonl"), *OFFLINE]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_bytes_that_are_no_utf8_are_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n\xff\xfe\n")
    assert main(["score", "--pairs", str(path), "--out", str(tmp_path / "out.jsonl"), *OFFLINE]) == 2
    assert "line 2: not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics", "bleu4", *OFFLINE], "unknown metric(s) bleu4"),
        (["--metrics", " , ", *OFFLINE], "--metrics names none"),
        (["--metrics", "radgraph", "--weights", "no/such/folder"], "make weights WEIGHTS_DIR=no/such/folder"),
        (["--metrics", "radgraph", "--dtype", "float16", "--device", "cpu"], "for a GPU"),
        (["--metrics", "ratescore", *OFFLINE], "no offline stand-in"),
        (["--metrics", "radgraph", "--device", "cuda:99"], "GPU(s) that torch can use"),
        (["--metrics", "radgraph", "--device", "abacus"], "abacus"),
        (["--metrics", "radgraph", "--device", "meta"], "device meta is unknown"),
        (["--metrics", "radgraph", "--tokens-per-batch", "0"], "tokens_per_batch is 0; at least 1"),
        (["--metrics", "radgraph", "--cache-megabytes", "0"], "cache_disk_megabytes is 0; at least 1"),
    ],
)
def test_a_users_mistake_is_one_line(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    assert main(["score", "--pairs", str(pairs), "--out", str(tmp_path / "out.jsonl"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_missing_file_and_out_onto_the_pairs(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["score", "--pairs", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "o.jsonl"), *OFFLINE]) == 2
    assert "none.jsonl cannot be read: No such file" in capsys.readouterr().err
    before = pairs.read_bytes()
    assert main(["score", "--pairs", str(pairs), "--out", str(pairs), *OFFLINE]) == 2
    assert pairs.read_bytes() == before


def test_the_summary_does_not_overwrite_the_pairs_or_a_folder(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    other = pairs.rename(tmp_path / "mine.summary.json")
    before = other.read_bytes()
    assert main(["score", "--pairs", str(other), "--out", str(tmp_path / "mine.jsonl"), *OFFLINE]) == 2
    assert "must be another file than the pairs" in capsys.readouterr().err
    assert other.read_bytes() == before
    (tmp_path / "o.summary.json").mkdir()
    assert main(["score", "--pairs", str(other), "--out", str(tmp_path / "o.jsonl"), *OFFLINE]) == 2
    assert not (tmp_path / "o.jsonl").exists()


def test_a_cache_that_cannot_be_used_is_one_line(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    weights = write_weights(tmp_path / "weights")
    command = ["score", "--pairs", str(pairs), "--out", str(tmp_path / "o.jsonl"), "--weights", str(weights)]
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "scores.sqlite").write_bytes(b"no database" * 1000)
    for cache in ("file", "broken"):
        assert main([*command, "--metrics", "sembscore", "--cache", str(tmp_path / cache)]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: the cache ")
        assert "name another folder" in error
    assert not (tmp_path / "o.jsonl").exists()


def test_as_a_module_it_exits_with_status_two(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rewards", "score", "--pairs", "none.jsonl", "--out", "o.jsonl", *OFFLINE]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2])
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
