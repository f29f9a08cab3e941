"""Several processes by gloo on a CPU: the same training as one, and no hanging when one of them dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_slurm import make_cluster, start_job

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def command(processes: int, stage: list[str], parallel: str | None = None) -> list[str]:
    if processes == 1:
        return [sys.executable, *stage]
    spread = ["--config_file", f"launch/accelerate/{parallel}.yaml"] if parallel else []
    start = ["-m", "launch.torchrun", *spread, "--standalone", "--nproc_per_node", str(processes)]
    return [sys.executable, *start, *stage]


def stage_arguments(name: str, data: Path, model: Path, out: Path, **settings: object) -> list[str]:
    given = {
        "data_dir": data,
        "model_name_or_path": model,
        "output_dir": out,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    words = ["--config", str(REPOSITORY / f"recipes/demo/{name}.yaml"), "--datasets", "phantom_prairie"]
    words += ["--dataset_weights", "1"]
    for key, value in {**given, **settings}.items():
        words += [f"--{key}", str(value)]
    return words


def train(processes: int, stage: list[str], out: Path, parallel: str | None = None) -> list[dict]:
    """Run a stage; its log, a dictionary a step."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    words = command(processes, stage, parallel)
    run = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    assert json.loads((out / "result.json").read_text())["processes"] == processes
    return json.loads((out / "log_history.json").read_text())


def test_two_processes_train_sft_as_one_does(phantom_data, tiny_base, tmp_path):
    logs = {}
    for processes in (1, 2):
        out = tmp_path / f"sft{processes}"
        settings = {"max_steps": 4, "global_batch_size": 8, "per_device_train_batch_size": 4, "warmup_steps": 0}
        words = stage_arguments("sft", phantom_data, tiny_base, out, train_sampling_strategy="random", **settings)
        logs[processes] = train(processes, ["-m", "recipes.sft", *words], out)
    assert len(logs[1]) == len(logs[2]) == 4
    for one, two in zip(logs[1], logs[2], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-2)
    assert logs[1][-1]["loss"] < logs[1][0]["loss"]


def test_two_processes_train_grpo_as_one_does(phantom_data, tiny_base, tmp_path):
    """With the same rollouts (tests/grpo_same_sampling.py), rewards, advantages and losses are the same."""
    logs = {}
    for processes in (1, 2):
        out = tmp_path / f"grpo{processes}"
        settings = {
            "max_steps": 3,
            "global_batch_size": 2,
            "num_generations": 4,
            "per_device_train_batch_size": 4,
            "updates_per_generation": 1,
            "max_completion_length": 24,
            "mask_truncated_completions": "false",
            "monitor_max_truncated": 1,  # an untrained model does not end its reports
        }
        words = stage_arguments("rl_step1", phantom_data, tiny_base, out, **settings)
        logs[processes] = train(processes, [str(REPOSITORY / "tests/grpo_same_sampling.py"), *words], out)
    assert len(logs[1]) == len(logs[2]) == 3
    for one, two in zip(logs[1], logs[2], strict=True):
        assert two["reward"] == pytest.approx(one["reward"], abs=1e-4)
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-4)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=2e-2)
    assert any(abs(entry["grad_norm"]) > 1e-4 for entry in logs[1])  # the rollouts did differ


@pytest.mark.parametrize("name", ["sft", "rl_step1"])
def test_two_shards_of_fsdp_2_train_as_one_process_does(phantom_data, tiny_base, tmp_path, name):
    """SFT, and GRPO with a study's rollouts in one row (share_prompts, which is the recipe's)."""
    settings = {"sft": {"global_batch_size": 8, "per_device_train_batch_size": 4, "warmup_steps": 0}}.get(name) or {
        "global_batch_size": 2,
        "num_generations": 4,
        "per_device_train_batch_size": 4,
        "updates_per_generation": 1,
        "max_completion_length": 24,
        "mask_truncated_completions": "false",
        "monitor_max_truncated": 1,
    }
    stage = ["-m", "recipes.sft"] if name == "sft" else [str(REPOSITORY / "tests/grpo_same_sampling.py")]
    logs = {}
    for parallel in (None, "fsdp2"):
        out = tmp_path / f"{name}-{parallel}"
        words = stage_arguments(name, phantom_data, tiny_base, out, max_steps=3, **settings)
        logs[parallel] = train(2 if parallel else 1, [*stage, *words], out, parallel)
    assert len(logs[None]) == len(logs["fsdp2"]) == 3
    for one, two in zip(logs[None], logs["fsdp2"], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-2, abs=2e-3)  # the configuration computes in bfloat16
        if name == "rl_step1":
            assert two["reward"] == pytest.approx(one["reward"], abs=2e-3)


@pytest.mark.parametrize("name", ["sft", "rl_step1"])
def test_deterministic_training_ends_with_the_same_weights(phantom_data, tiny_base, tmp_path, name):
    """make … DETERMINISTIC=1: transformers' and TRL's trainers take the flag, and two runs are equal to the bit."""
    settings = {"sft": {"global_batch_size": 8, "warmup_steps": 0}}.get(name) or {
        "global_batch_size": 1,
        "num_generations": 4,
        "per_device_train_batch_size": 4,
        "updates_per_generation": 1,
        "max_completion_length": 16,
        "mask_truncated_completions": "false",
        "monitor_max_truncated": 1,
    }
    module = "recipes.sft" if name == "sft" else "recipes.grpo"
    ends = []
    for out in (tmp_path / "first", tmp_path / "second"):
        words = stage_arguments(name, phantom_data, tiny_base, out, max_steps=2, full_determinism="true", **settings)
        train(1, ["-m", module, *words], out)
        result = json.loads((out / "result.json").read_text())
        assert result["settings"]["full_determinism"] is True
        ends.append(result["final_sha256"])
    assert ends[0] == ends[1]


def children(pid: int) -> list[int]:
    """Processes that `pid` started and that train."""
    found = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if "recipes.sft" in line]


def test_a_killed_process_ends_the_job_within_a_minute(phantom_data, tiny_base, tmp_path):
    words = stage_arguments("sft", phantom_data, tiny_base, tmp_path / "sft", max_steps=100_000)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    log = tmp_path / "log.txt"
    with log.open("w") as output:
        job = subprocess.Popen(
            command(2, ["-m", "recipes.sft", *words]),
            cwd=REPOSITORY,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 540
        while "step 3/" not in log.read_text() and job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)
        workers = children(job.pid)
        assert len(workers) == 2, log.read_text()
        os.kill(workers[1], signal.SIGKILL)
        killed = time.monotonic()
        status = job.wait(60)
        assert time.monotonic() - killed < 60
        assert status != 0
        assert "process 1 was ended by signal 9" in log.read_text()
        assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)


def test_a_preempted_slurm_job_of_two_processes_saves_and_goes_on(phantom_data, tiny_base, tmp_path):
    """launch/slurm/sft.sbatch by a fake srun: warned in the middle, requeued, and run again to its end."""
    make_cluster(tmp_path)
    out = tmp_path / "sft"
    words = stage_arguments("sft", phantom_data, tiny_base, out, max_steps=40)[2:]
    environment = {"TASKS": "2", "RECIPE": "demo", "PARALLEL": "cpu", "PYTHON": sys.executable, "PYTHONUNBUFFERED": "1"}
    environment |= {"DATA_DIR": str(phantom_data), "ARGS": " ".join(words), "OMP_NUM_THREADS": "1"}
    job = start_job("sft.sbatch", tmp_path, **environment)
    seen = []
    for line in job.stdout:
        seen.append(line)
        if "step 3/" in line:
            job.send_signal(signal.SIGUSR1)  # --signal=B:USR1@600
    assert job.wait(60) == 0, "".join(seen)
    assert "requeue 77" in (tmp_path / "scontrol.log").read_text()
    (checkpoint,) = out.glob("checkpoint-*")
    again = start_job("sft.sbatch", tmp_path, **environment)
    output, _ = again.communicate(timeout=540)
    assert again.returncode == 0, output
    assert f"going on from {checkpoint.name}" in output
    result = json.loads((out / "result.json").read_text())
    assert (result["steps"], result["processes"]) == (40, 2)
    assert [run["processes"] for run in json.loads((out / "run.json").read_text())["runs"]] == [2, 2]
