"""`run.json` says what made an output, and `make reproduce` turns it back into commands."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from launch import provenance
from launch.provenance import ProvenanceError, changed_since, main, read_run, reproduction, write_run

REPOSITORY = Path(__file__).resolve().parent.parent


def test_a_run_is_written_with_seed_versions_revision_and_recipe(tmp_path, monkeypatch):
    words = ["/somewhere/python", "-u", "-m", "recipes.sft", "--config", str(REPOSITORY / "recipes/demo/sft.yaml")]
    monkeypatch.setattr(sys, "orig_argv", [*words, "--judge_base_url", "https://me:secret@judge.example/v1"])
    monkeypatch.setenv("JUDGE_API_KEY", "sk-secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_run(tmp_path, "sft", seed=7, processes=2)
    text = (tmp_path / "run.json").read_text()
    assert "secret" not in text
    run = json.loads(text)["runs"][0]
    assert (run["seed"], run["processes"], run["stage"]) == (7, 2, "sft")
    assert run["versions"]["torch"] == version("torch")
    assert run["command"][:3] == ["python", "-m", "recipes.sft"]
    assert "learning_rate" in run["recipe"]["text"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
    if head.returncode == 0:
        assert run["code"]["revision"] == head.stdout.strip()
    assert changed_since(tmp_path) == []
    commands = reproduction(tmp_path)
    assert any(f"torch=={version('torch').split('+')[0]}" in line for line in commands)
    (line,) = [line for line in commands if "recipes.sft" in line]
    assert "--nproc_per_node 2 -m recipes.sft --config" in line
    assert line.startswith("OMP_NUM_THREADS=1 ")


def test_a_run_that_goes_on_adds_itself(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path, "sft", seed=seed)
    assert [run["seed"] for run in read_run(tmp_path)["runs"]] == [1, 2]
    assert any("2 runs" in line for line in reproduction(tmp_path))


def test_changes_of_code_are_kept_as_a_patch(tmp_path, monkeypatch):
    repository = tmp_path / "code"
    repository.mkdir()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    (repository / "a.py").write_text("a = 1\n")
    for command in (["init", "-q"], ["add", "a.py"], ["commit", "-q", "-m", "a"]):
        subprocess.run([*git, *command], cwd=repository, check=True)
    monkeypatch.setattr(provenance, "REPOSITORY", repository)
    out = tmp_path / "out"
    assert write_run(out, "sft", 1)["runs"][0]["code"]["changed_files"] == []
    (repository / "a.py").write_text("a = 2\n")
    code = write_run(out, "sft", 1)["runs"][1]["code"]
    assert code["changed_files"] == ["a.py"]
    assert "+a = 2" in (out / "run.patch").read_text()
    assert any(line.startswith("git apply") for line in reproduction(out))


def test_without_git_the_source_is_fingerprinted(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "a.py").write_text("a = 1\n")
    monkeypatch.setattr(provenance, "REPOSITORY", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    first = provenance.code_state()
    assert first["revision"] is None
    (tmp_path / "recipes" / "a.py").write_text("a = 2\n")
    assert provenance.code_state()["source_sha256"] != first["source_sha256"]


@pytest.mark.parametrize("content", [None, "{", '{"runs": [{}]}', "[]"])
def test_a_folder_that_does_not_say_is_one_line(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(ProvenanceError):
        read_run(tmp_path)
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
