"""`make verify`: its report, its exit status, and the whole of it on random weights and the tiny model."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from foundation.errors import RecipeError
from launch.verify import verify
from launch.verifying import metrics, training
from launch.verifying.fingerprints import check_fingerprints
from launch.verifying.judge import check_judge
from launch.verifying.line import Line, Subject, skipped
from launch.verifying.stage_runs import REPOSITORY, Done

OK = Line("one", "1", "1", True)


@pytest.fixture
def subject(tmp_path: Path, phantom_data: Path, tiny_base: Path) -> Subject:
    out = tmp_path / "verify"
    out.mkdir()
    reports = phantom_data / "phantom_harbor" / "test.parquet"
    return Subject("demo", None, phantom_data, tmp_path / "weights", out, str(tiny_base), reports, pairs=40)


def test_the_report_holds_every_line_escaped(subject: Subject, capsys: pytest.CaptureFixture) -> None:
    report = "<script>alert(1)</script> & effusion"
    lines = [OK, Line("text", "a report", report, True), skipped("vLLM", "a report", "no GPU")]
    assert verify(subject, {"some": lambda _: iter(lines)}, {"machine": "a<b"})
    page = (subject.out / "verify.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; effusion" in page
    assert "a&lt;b" in page
    written = json.loads((subject.out / "verify.json").read_text())
    assert written["lines"] == [dataclasses.asdict(line) for line in lines]
    assert written["counts"] == "2 ok, 0 differs, 1 skipped"
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "no GPU" in line]
    assert line.split()[0] == "skipped"
    assert line.count("skipped") == 1


@pytest.mark.parametrize("kind", [RecipeError, OSError, RuntimeError])
def test_a_check_that_cannot_go_on_is_a_line_and_the_others_follow(subject: Subject, kind: type[Exception]) -> None:
    def fails(_: Subject) -> Iterator[Line]:
        yield OK
        raise kind("no <b>films</b>\nhere")

    assert not verify(subject, {"broken": fails, "other": lambda _: iter([OK])}, {})
    lines = json.loads((subject.out / "verify.json").read_text())["lines"]
    assert [line["ok"] for line in lines] == [True, False, True]
    assert lines[1]["found"] == "no <b>films</b> here"


def test_scores_that_differ_or_are_no_numbers_fail() -> None:
    metric = metrics.load_metrics(["bleu2"])["bleu2"]
    theirs = np.linspace(0, 1, 100)

    def line(ours: np.ndarray, share: float = 1.0) -> Line:
        return metrics._line(metric, "m", "equal", share, (ours, theirs), (1.0, 4.0))

    assert line(theirs + 1e-6).ok
    assert not line(theirs + 1e-3).ok
    one_off = np.where(np.arange(100) == 3, np.nan, theirs)
    assert not line(one_off).ok
    assert line(one_off, 0.99).ok
    assert "100.0 pairs a second, the package 25.0" in line(theirs).found


def test_pairs_are_of_every_kind_and_as_many_as_asked(subject: Subject) -> None:
    pairs = metrics.pairs_of(subject, 30)
    assert len(pairs) == 30
    assert all(candidate != reference for candidate, reference in pairs)


def test_the_judge_sees_known_errors_and_a_deaf_one_fails(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [line.ok for line in check_judge(subject)] == [True, True, True]
    monkeypatch.setattr(
        "launch.verifying.judge.known_pairs", lambda _: [("negation flipped", "Normal.", "Normal.")] * 3
    )
    answers, seen, _ = check_judge(subject)
    assert answers.ok
    assert seen.ok is False


def test_a_changed_weight_file_fails(subject: Subject) -> None:
    folder = subject.weights_dir
    folder.mkdir()
    (folder / "chexbert.pth").write_bytes(b"weights")
    digest = "9d2a5d7c9e0cd6e1ebc1c5a6a1a7a9a8a6a5a4a3a2a1a0a9a8a7a6a5a4a3a2a1"
    entry = {"repository": "r", "revision": "1", "size": 7, "sha256": digest}
    (folder / "weights.lock.json").write_text(json.dumps({"files": {"chexbert.pth": entry}, "complete": []}))
    weights, base = check_fingerprints(subject)
    assert weights.ok is False
    assert "chexbert.pth: sha256 differs" in weights.found
    assert base.ok


def _done(losses: list[float], sha: str = "a", **result: object) -> Done:
    settings = {"dtype": "float32"}
    updates = [{"loss": loss, "grad_norm": 1.0} for loss in losses]
    return Done(updates, {"settings": settings, "final_sha256": sha, "seconds": 1.0, **result})


def test_losses_that_differ_with_shared_prompts_fail() -> None:
    assert training.shared_line("rl_step1", _done([0.1, 0.2]), _done([0.1, 0.2001])).ok
    assert not training.shared_line("rl_step1", _done([0.1, 0.2]), _done([0.1, 0.21])).ok
    assert not training.shared_line("rl_step1", _done([0.1, 0.2]), Done([], {}, "exit status 2")).ok


def test_a_resumed_run_must_have_been_killed_and_end_as_the_other() -> None:
    whole = _done([0.1, 0.2])
    assert training.resumed_line(whole, _done([0.1, 0.2]), True, on_gpu=False).ok
    assert not training.resumed_line(whole, _done([0.1, 0.2]), False, on_gpu=False).ok
    assert not training.resumed_line(whole, _done([0.1, 0.2], "b"), True, on_gpu=False).ok
    assert training.resumed_line(whole, _done([0.1, 0.2], "b"), True, on_gpu=True).ok
    assert not training.resumed_line(whole, _done([0.1]), True, on_gpu=True).ok


def _verify(subject: Subject, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "launch.verify", "--recipe", "demo", "--out", subject.out]
    command += ["--data_dir", subject.data_dir, "--weights_dir", subject.weights_dir, "--model", subject.model]
    return subprocess.run([*map(str, command), *map(str, arguments)], cwd=REPOSITORY, capture_output=True, text=True)


def test_the_command_ends_with_1_where_a_line_differs(subject: Subject) -> None:
    data = ["--datasets", "phantom_harbor"]
    empty = _verify(dataclasses.replace(subject, model=str(subject.out)), *data, "--only", "fingerprints")
    assert empty.returncode == 1, empty.stderr
    assert "no *.safetensors there" in (subject.out / "verify.html").read_text()
    missing = _verify(subject, "--datasets", "nowhere")
    assert missing.returncode == 2
    assert len(missing.stderr.splitlines()) == 1


@pytest.mark.slow
def test_all_of_it_is_green_on_random_weights_and_the_tiny_model(subject: Subject) -> None:
    from random_weights import write_ratescore, write_weights

    write_ratescore(write_weights(subject.weights_dir))
    done = _verify(subject, "--datasets", "phantom_prairie", "--most_reports", "40", "--studies", "8")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = json.loads((subject.out / "verify.json").read_text())["lines"]
    found = {line["check"]: line["ok"] for line in lines}
    parts = ("radgraph_partial against radgraph", "sembscore against f1chexbert", "bertscore against bert_score")
    training_lines = [f"{stage}: share_prompts on and off" for stage in training.RL_STAGES]
    assert all(found[name] for name in (*parts, *training_lines, "sft: peak memory"))
    assert found["sft: kill -9 after the first update, then the same command"]
    assert not list(subject.out.glob("runs-*"))
