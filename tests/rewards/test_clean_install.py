"""`pip install .` in an environment of its own: rewards and evaluation are there, no recipe and no torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from evaluation_files import make_studies, write_predictions
from synthetic_reports import grpo_batch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent.parent
SCORE_TEN_PAIRS = """
import asyncio, importlib.util, json, sys
import rewards, evaluation
from rewards.easyr1 import compute_score
from rewards.metric import MetricError
from rewards.trl import composite_reward, reward_function
from rewards.verl import compute_score_batch

pairs = [json.loads(line) for line in open("pairs.jsonl")]
candidates, references = [p["candidate"] for p in pairs], [p["reference"] for p in pairs]
weights = {"bertscore": 0.370, "sembscore": 0.253, "radgraph": 0.377}
reward = composite_reward(weights, reference_column="report", source="iu_xray", backend="offline")
inputs = [{"response": c, "ground_truth": r} for c, r in zip(candidates, references)]
try:
    reward_function("radgraph")
except MetricError as error:
    refusal = str(error)
print(json.dumps({
    "where": [rewards.__file__, evaluation.__file__],
    "heavy": [name for name in ("torch", "transformers", "trl", "recipes") if importlib.util.find_spec(name)],
    "bleu2": reward_function("bleu2")(completions=candidates, reference=references),
    "trl": asyncio.run(reward(completions=candidates, report=references)),
    "easyr1": [row["overall"] for row in compute_score(inputs, weights=weights, backend="offline")],
    "verl": [row["score"] for row in compute_score_batch(
        ["iu_xray"] * 10, candidates, references, weights=weights, backend="offline")],
    "refusal": refusal,
}))
"""


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A new virtual environment with what `pip install .` brings, and an empty folder to work in."""
    folder = tmp_path_factory.mktemp("clean")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, tracked.decode().split("\0")):  # what a clone has: no build folder, no .venv
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", folder / "source"]
    installed = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert installed.returncode == 0, installed.stderr
    (folder / "work").mkdir()
    return python, folder / "work"


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def run(clean: tuple[Path, Path], *command: str) -> str:
    python, folder = clean
    done = subprocess.run([python, *command], cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_library_scores_ten_pairs_for_each_trainer(clean) -> None:
    candidates, references = grpo_batch(prompts=2, rollouts=5)
    rows = [
        {"id": i, "candidate": c, "reference": r} for i, (c, r) in enumerate(zip(candidates, references, strict=True))
    ]
    (clean[1] / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = json.loads(run(clean, "-c", SCORE_TEN_PAIRS))
    assert all(str(clean[0].parent.parent) in where for where in result["where"])
    assert result["heavy"] == []
    assert len(result["trl"]) == 10
    assert len(set(result["bleu2"])) > 2
    assert result["trl"] == pytest.approx(result["easyr1"], abs=1e-9)
    assert result["trl"] == pytest.approx(result["verl"], abs=1e-9)
    assert "pip install '.[models]'" in result["refusal"]

    arguments = [
        "--pairs",
        "pairs.jsonl",
        "--metrics",
        "bleu2,radgraph",
        "--backend",
        "offline",
        "--out",
        "scores.jsonl",
    ]
    run(clean, "-m", "rewards", "score", *arguments)
    assert len((clean[1] / "scores.jsonl").read_text().splitlines()) == 10


def test_the_library_evaluates_a_file_of_predictions(clean) -> None:
    write_predictions(clean[1] / "theirs.json", make_studies(6))
    table = run(
        clean, "-m", "evaluation", "score", "--predictions", "theirs.json", "--backend", "offline", "--out", "scores",
        "--resamples", "50",
    )  # fmt: skip
    assert "bertscore[offline-hash]" in table
    assert len((clean[1] / "scores" / "scores.jsonl").read_text().splitlines()) == 12
