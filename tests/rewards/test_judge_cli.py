"""The judge at the command line: ratings, table, cache, agreement; a user's mistake is one line and exit status 2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau

from foundation.governance import JudgeError
from rewards.__main__ import main
from rewards.chexprompt.agreement import agreement, bias, exact, quadratic_kappa, tau_b, within_one
from rewards.chexprompt.judgement import ERROR_TYPES, Judgement
from rewards.chexprompt.ratings import Rating, error_table, read_ratings
from rewards.offline.judge_server import count_errors

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = "Findings: Moderate left pleural effusion. Impression: Left pleural effusion."
CANDIDATES = [
    REFERENCE,
    REFERENCE.replace("eft", "ight").replace("Light", "Right"),
    "No effusion.",
    "Cardiomegaly. Edema. Right pneumothorax. Pneumonia. Left rib fracture.",
]


def command(*arguments, cwd) -> subprocess.CompletedProcess:
    """`python -m rewards ARGUMENTS` run in `cwd`."""
    line = [sys.executable, "-m", "rewards", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(line, capture_output=True, text=True, cwd=cwd, timeout=300, env=environment)


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"id": f"s{i}", "reference": REFERENCE, "candidate": candidate, "source": "mimic_cxr"}
        for i, candidate in enumerate(CANDIDATES)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_from_pairs_to_ratings_table_cache_and_agreement(pairs, tmp_path):
    out = tmp_path / "results" / "ratings.jsonl"
    config = tmp_path / "rl.yaml"
    config.write_text(f"learning_rate: 1.0e-5\njudge_base_url: offline\njudge_cache_dir: {tmp_path}/cache\n")
    run = command("judge", "--pairs", pairs, "--out", out, "--config", config, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    ratings = [json.loads(line) for line in out.read_text().splitlines()]
    expected = [count_errors(REFERENCE, candidate) for candidate in CANDIDATES]
    assert [row["id"] for row in ratings] == ["s0", "s1", "s2", "s3"]
    assert [row["errors"] for row in ratings] == [judgement.errors for judgement in expected]
    assert [r.judgement for r in read_ratings(out)] == expected
    assert {row["judge"] for row in ratings} == {"chexprompt[offline-rules-judge]"}
    assert all(row["fingerprint"] and row["prompt_version"] for row in ratings)
    assert "share with at least 4" in run.stdout
    assert "chexprompt[offline-rules-judge]" in run.stdout
    assert "4/4" in run.stderr  # progress
    assert "tokens" in run.stderr  # cost so far
    assert "effusion" not in run.stdout + run.stderr
    summary = json.loads((tmp_path / "results" / "ratings.summary.json").read_text())
    assert summary["table"] == error_table(expected)
    assert summary["spending"]["calls"] == 4

    # Again, by options instead of the file: nothing is asked.
    again = command(
        "judge", "--pairs", pairs, "--out", out, "--judge-base-url", "offline", "--judge_cache_dir", tmp_path / "cache",
        cwd=tmp_path,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert "4 without a call; 0 calls" in again.stderr
    assert [json.loads(line) for line in out.read_text().splitlines()] == ratings

    stats = command("judge-cache", "stats", "--judge-cache-dir", tmp_path / "cache", cwd=tmp_path)
    assert "4 answers" in stats.stdout
    exported = tmp_path / "answers.jsonl"
    run = command("judge-cache", "export", "--judge-cache-dir", tmp_path / "cache", "--out", exported, cwd=tmp_path)
    assert run.returncode == 0
    assert len(exported.read_text().splitlines()) == 4
    assert "effusion" not in exported.read_text()
    run = command("judge-cache", "prune", "--judge-cache-dir", tmp_path / "cache", "--older-than", 0, cwd=tmp_path)
    assert "4 answers deleted" in run.stdout

    result = tmp_path / "agreement.json"
    run = command("judge-agreement", out, out, "--out", result, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "Kendall's tau-b" in run.stdout
    assert json.loads(result.read_text())["measures"]["quadratic kappa"]["value"] == 1.0


def test_unjudged_pairs_are_told_and_can_be_asked_again(pairs, tmp_path):
    options = ["--pairs", pairs, "--out", tmp_path / "r.jsonl", "--judge-base-url", "offline"]
    options += ["--judge-cache-dir", tmp_path / "cache"]
    run = command("judge", *options, "--judge-budget-calls", 1, cwd=tmp_path)
    assert run.returncode == 1
    assert "budget is reached" in run.stderr
    assert "3 of 4 pairs were not judged" in run.stderr
    assert "Traceback" not in run.stderr
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [row["failure"] for row in rows].count("budget reached") == 3
    assert all(("errors" in row) == (row["failure"] is None) for row in rows)
    assert "3 × budget reached" in run.stdout
    rest = command("judge", *options, cwd=tmp_path)
    assert rest.returncode == 0
    assert "1 without a call; 3 calls" in rest.stderr


def row(**changes) -> str:
    return json.dumps({"id": "1", "reference": "r", "candidate": "c", "source": "iu_xray"} | changes)


@pytest.mark.parametrize(
    ("content", "options", "named"),
    [
        (None, [], "pairs.jsonl cannot be read"),
        ("", [], "is empty"),
        ("\n \n", [], "is empty"),
        ("Mr Smith", [], "line 1: not JSON"),
        (row() + "\n[1]", [], "line 2: not a JSON object"),
        (row(candidate=None), [], "line 1: 'candidate'"),
        (row(reference=4), [], "line 1: 'reference'"),
        (row(source=4), [], "line 1: 'source'"),
        (row() + "\n" + row(), [], "line 2: id '1' was used on line 1"),
        (row(), ["--judge-base-url", "http://127.0.0.1:9/v1"], "judge_model is not set"),
        (row(), ["--judge-base-url", "http://127.0.0.1:9/v1", "--judge-model", "m"], "no judge answers at"),
        (row(), ["--judge-base-url", "nonsense", "--judge-model", "m"], "judge_base_url"),
        (row(), ["--judge-base-url", "offline", "--judge-concurrency", "0"], "judge_concurrency"),
        (row(), ["--judge-base-url", "offline", "--judge-prompt-file", "none.txt"], "none.txt"),
        (row(), ["--judge-base-url", "offline", "--out", "pairs.jsonl"], "another file than the pairs"),
        (row(), ["--config", "none.yaml"], "no recipe file none.yaml"),
        (row(), ["--judge-base-url", "offline", "--judge-extra-body", "{"], "judge_extra_body"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(tmp_path, monkeypatch, capsys, content, options, named):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "pairs.jsonl").write_text(content)
    with pytest.raises(SystemExit) as caught:
        main(["judge", "--pairs", "pairs.jsonl", "--out", "out.jsonl", *options])
    stderr = capsys.readouterr().err
    assert caught.value.code == 2
    assert named in stderr
    assert stderr.strip().count("\n") == 0
    assert "Smith" not in stderr
    assert not list(tmp_path.glob("out*"))


def test_credentialed_reports_are_refused_before_anything_is_sent(tmp_path, pairs, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "sk-secret")
    options = ["--judge-base-url", "https://judge.example/v1", "--judge-model", "m"]
    run = command("judge", "--pairs", pairs, "--out", "out.jsonl", *options, cwd=tmp_path)
    assert run.returncode == 2
    assert "reports of mimic_cxr are not sent to judge.example" in run.stderr
    assert "sk-secret" not in run.stderr


def test_the_papers_table_by_hand():
    judgements = [
        Judgement((n, 0, 0, 0, 0, 0), (0, m, 0, 0, 0, 0)) for n, m in ((0, 0), (1, 0), (1, 1), (2, 1), (3, 1))
    ]
    table = error_table([*judgements, None])
    assert (table["n"], table["failed"]) == (5, 1)
    means = {name: value["mean"] for name, value in table["all"].items()}
    assert means["share with at most 1"] == pytest.approx(0.4)
    assert [means[f"share with {k}"] for k in ("2", "3", "at least 4")] == pytest.approx([0.2, 0.2, 0.2])
    assert means["errors"] == pytest.approx((0 + 1 + 2 + 3 + 4) / 5)
    assert means["false_finding"] == pytest.approx(7 / 5)
    assert means["omitted_finding"] == pytest.approx(3 / 5)
    assert table["significant"]["share with 3"]["mean"] == pytest.approx(0.2)
    assert table["significant"]["omitted_finding"]["mean"] == 0
    for part in ("all", "significant"):
        for value in table[part].values():
            assert value["low"] <= value["mean"] <= value["high"]
    assert table == error_table([*judgements, None])  # fixed seed
    with pytest.raises(JudgeError):
        error_table([None])


def test_the_bootstrap_interval_has_the_width_of_the_standard_error():
    counts = np.random.default_rng(1).poisson(2, 400)
    interval = error_table([Judgement((int(n), 0, 0, 0, 0, 0), (0,) * 6) for n in counts])["all"]["errors"]
    assert interval["high"] - interval["low"] == pytest.approx(2 * 1.96 * counts.std() / 20, rel=0.12)


def test_measures_against_libraries_and_by_hand():
    random = np.random.default_rng(0)
    a = random.poisson(2, 300).astype(float)
    b = np.maximum(0, a + random.integers(-1, 3, 300))
    metrics = pytest.importorskip("sklearn.metrics")
    assert quadratic_kappa(a, b) == pytest.approx(metrics.cohen_kappa_score(a, b, weights="quadratic"))
    assert tau_b(a, b) == pytest.approx(kendalltau(a, b).statistic)
    x, y = np.array([0.0, 1, 2, 5]), np.array([0.0, 2, 4, 4])
    assert (exact(x, y), within_one(x, y), bias(x, y)) == (0.25, 0.75, -0.5)
    assert quadratic_kappa(x, -x + 5) < 0
    assert tau_b(x, -x) == -1


def ratings(counts, name="r") -> list[Rating]:
    return [
        Rating(f"{name}{i}", Judgement((int(n), 0, 0, 0, 0, 0), (0, 0, 0, 1, 0, 0)), None) for i, n in enumerate(counts)
    ]


def test_agreement_matches_by_id_and_tells_what_it_left_out():
    a = [*ratings([0, 1, 2, 3, 4, 5]), Rating("only a", None, "timeout"), Rating("failed", None, "timeout")]
    b = [*reversed(ratings([0, 1, 2, 3, 4, 7])), Rating("failed", Judgement((0,) * 6, (0,) * 6), None)]
    result = agreement(a, b)
    assert (result["n"], result["not judged by both"], result["only in A"], result["only in B"]) == (6, 1, 1, 0)
    measures = result["measures"]
    assert measures["exact agreement"]["value"] == pytest.approx(5 / 6)
    assert measures["bias"]["value"] == pytest.approx(-2 / 6)
    assert measures["bias false_finding"]["value"] == pytest.approx(-2 / 6)
    assert measures["bias severity"]["value"] == 0
    assert set(measures) >= {f"bias {name}" for name in ERROR_TYPES}
    for number in measures.values():
        assert number["low"] <= number["value"] <= number["high"]
    assert agreement(a, b, errors="significant")["errors"] == "significant"
    with pytest.raises(JudgeError, match="0 judged reports in common"):
        agreement(a, ratings([1, 2], "other"))


def test_a_constant_judge_has_no_correlation_and_says_so():
    measures = agreement(ratings([1, 2, 3]), ratings([2, 2, 2]))["measures"]
    assert measures["Kendall's tau-b"] == {"value": None, "low": None, "high": None, "undefined": 1000}


def test_a_humans_file_may_leave_out_types(tmp_path):
    path = tmp_path / "human.jsonl"
    path.write_text('{"id": "s1", "significant": {"location": 1}, "insignificant": {}}\n')
    assert read_ratings(path) == [Rating("s1", Judgement((0, 0, 1, 0, 0, 0), (0,) * 6), None)]
    for wrong in (
        {"significant": {"loc": 1}},
        {"significant": {"location": -1}},
        {"significant": {"location": 1.5}},
        {},
    ):
        path.write_text(json.dumps({"insignificant": {}} | wrong))
        with pytest.raises(JudgeError, match="line 1"):
            read_ratings(path)
