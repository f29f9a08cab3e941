"""`run.json` says what made an output, and `make reproduce` turns it back into commands."""

from __future__ import annotations

import importlib
import json
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from trl import ModelConfig, SFTConfig

import foundation.machine
import launch.processes
import launch.stage
from foundation import provenance
from foundation.machine import Gpu
from foundation.provenance import ProvenanceError, read_run, write_run
from launch.reproduce import changed_since, main, reproduction
from settings.arguments import DataArguments, StageArguments
from settings.parser import parse_recipe

REPOSITORY = Path(__file__).resolve().parents[2]


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
    (line,) = [line for line in commands if "recipes.sft" in line]
    assert line.startswith(".venv/bin/python -m launch.stage --processes 2 -- -m recipes.sft --config")
    assert "export OMP_NUM_THREADS=1" in commands


@pytest.fixture
def gpus(monkeypatch):
    """A machine of eight GPUs with room for everything."""
    for name in ("gpus", "all_gpus"):
        monkeypatch.setattr(foundation.machine, name, lambda: [Gpu("NVIDIA H100", 80 * 10**9, 9.0, "580")] * 8)
    monkeypatch.setattr(foundation.machine, "free_disk", lambda path: 10 * 2**40)
    monkeypatch.setattr(launch.processes, "find_spec", lambda name: "there")
    for name in ("RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


SFT = ["-m", "recipes.sft", "--config", "recipes/unirg_cxr/sft.yaml", "--learning_rate", "1e-5"]
DEMO = ["-m", "recipes.sft", "--config", "recipes/demo/sft.yaml", "--output_dir", "outputs/two words/sft"]
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2", "LOCAL_WORLD_SIZE": "8"}


@pytest.mark.parametrize(
    ("words", "processes", "environment", "started"),
    [
        (DEMO, 2, {"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}, ["-m", "launch.torchrun", "--standalone", "--nproc_per_node", "2"]),
        (SFT, 8, {"ACCELERATE_USE_FSDP": "true", "LOCAL_WORLD_SIZE": "8", "CUDA_VISIBLE_DEVICES": "0,1"}, ["--config_file", "fsdp2.yaml", "--standalone", "--nproc_per_node", "8"]),
        (SFT, 16, ZERO, ["--config_file", "zero2.yaml", "--nnodes", "2", "--nproc_per_node", "8"]),
        (["-m", "launch.rank", "--config_file", "launch/accelerate/zero2.yaml", *SFT], 16, ZERO, ["--config_file", "zero2.yaml", "--nnodes", "2", "--nproc_per_node", "8"]),
        (SFT, 1, {}, None),
    ],
)  # fmt: skip
def test_what_is_printed_starts_the_same_processes_on_the_same_settings(
    tmp_path, monkeypatch, capsys, gpus, words, processes, environment, started
):
    """Each printed line is a shell's, and the last command is one that launch.stage and the stage's own parser take."""
    monkeypatch.chdir(REPOSITORY)
    for name in (*ZERO, "ACCELERATE_USE_FSDP", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    with monkeypatch.context() as running:
        running.setattr(sys, "orig_argv", ["/somewhere/python", "-u", *words])
        for name, value in environment.items():
            running.setenv(name, value)
        write_run(tmp_path, "sft", 1, processes)
    lines = reproduction(tmp_path)
    assert subprocess.run(["bash", "-n"], input="\n".join(lines), text=True).returncode == 0
    assert any(line.startswith("make setup") for line in lines)
    assert not any("ACCELERATE_" in line or "CUDA_VISIBLE_DEVICES" in line for line in lines)
    exported = [line.removeprefix("export ") for line in lines if line.startswith("export ")]
    assert exported == [f"{name}={value}" for name, value in environment.items() if name == "OMP_NUM_THREADS"]
    (line,) = [line for line in lines if "recipes.sft" in line]
    command = shlex.split(line)
    assert command[0] == ".venv/bin/python"
    stage = words[words.index("recipes.sft") :]
    assert command[-len(stage) :] == stage
    on_cpu = ["--use_cpu", "true", "--bf16", "false"]
    parse_recipe((DataArguments, StageArguments, ModelConfig, SFTConfig), [*stage[1:], *on_cpu])
    if started is None:
        assert command[1:] == words
        return
    assert command[1:3] == ["-m", "launch.stage"]
    monkeypatch.setenv("NODE_RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert launch.stage.main(["--dry-run", *command[3:]]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in started)


def test_vllm_and_deepspeed_are_installed_again_where_they_were_there(tmp_path, monkeypatch):
    write_run(tmp_path / "cpu", "sft", 1)
    assert not any("requirements-gpu" in line for line in reproduction(tmp_path / "cpu"))
    monkeypatch.setattr(provenance, "versions", lambda: {"torch": "2.13.0", "vllm": "0.30.0"})
    write_run(tmp_path / "gpu", "sft", 1)
    assert ".venv/bin/pip install -r requirements-gpu.txt" in reproduction(tmp_path / "gpu")


def test_a_run_of_an_earlier_version_can_go_on(tmp_path):
    write_run(tmp_path, "sft", seed=1, processes=2)
    content = json.loads((tmp_path / "run.json").read_text())
    del content["runs"][0]["launched"]
    (tmp_path / "run.json").write_text(json.dumps(content))
    write_run(tmp_path, "sft", seed=1, processes=2)
    assert [run["launched"]["per_node"] for run in read_run(tmp_path)["runs"]] == [2, 2]


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


def test_evaluation_and_selection_say_what_made_them(tmp_path, monkeypatch, phantom_data, tiny_base):
    """Their folders have a run.json too, whose command is theirs."""
    run = tmp_path / "run"
    (run / "rl_step1").mkdir(parents=True)
    (run / "rl_step1" / "checkpoint-1").symlink_to(tiny_base, target_is_directory=True)
    words = ["--config", str(REPOSITORY / "recipes/demo/eval.yaml"), "--run", str(run), "--data_dir", str(phantom_data)]
    words += ["--only_dataset", "phantom_prairie", "--max_new_tokens", "4", "--judge_base_url", ""]
    given = {
        "recipes.select_checkpoint": ["--stage", "rl_step1", "--validation_studies", "2"],
        "recipes.evaluate": ["--models", "rl_step1", "--split", "validation"],
    }
    for module, further in given.items():
        monkeypatch.setattr(sys, "argv", [module, *words, *further])
        monkeypatch.setattr(sys, "orig_argv", ["python", "-m", module, *words, *further])
        importlib.import_module(module).main()
    for folder, module in zip(("rl_step1/selection", "eval/phantom_prairie"), given, strict=True):
        assert read_run(run / folder)["runs"][0]["command"][:3] == ["python", "-m", module]
        assert any(f"-m {module} --config" in line for line in reproduction(run / folder))
