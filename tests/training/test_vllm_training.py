"""GRPO with rollouts from vLLM: it trains, and what would make it train on wrong rollouts is mended or stops the run.

Real training of an untrained tiny Qwen3-VL with vLLM for CPU in an environment of its own (tests/vllm_cpu.py, 5 GB; skipped
where that cannot be installed), or with vLLM on a GPU where there is one. Each fault that `training.vllm_guards` mends is put back and shows in the difference of
log-probabilities between sampler and trainer: measured 0.002 to 0.005 without a fault (the four image tokens that may not be
sampled have that much probability in an untrained model), 0.06 with image embeddings of older weights, 0.4 with image tokens
expanded twice, 0.9 with the rollouts of other weights.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from rl_runs import REPOSITORY, SMALL, options
from vllm_cpu import (
    ENVIRONMENT,
    GPU_MEMORY_SHARE,
    NotInstallable,
    on_gpu,
    scale_out,
    serve,
    training_environment,
)

from data_prep.sources.phantom import prepare
from model.fingerprint import model_fingerprint

pytestmark = pytest.mark.slow
LIMIT = 0.02  # between what is right and the least that is wrong; the recipes' is 0.1, for bfloat16
DIFFERENCE = "sampling/sampling_logp_difference/mean"
IMAGES = '{"image": 2, "video": 0}'


@pytest.fixture(scope="module")
def python() -> Path:
    try:
        return training_environment()
    except NotInstallable as error:
        pytest.skip(f"vLLM for CPU cannot be installed here: {error}")


@pytest.fixture(scope="module")
def few_studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training studies: each is seen again after two updates, as its cached image embedding would be."""
    folder = tmp_path_factory.mktemp("few")
    prepare(folder / "phantom_prairie", "prairie", seed=5, studies={"train": 4, "validation": 4, "test": 4})
    return folder


def train(
    python: Path, fault: str, out: Path, model: Path, data: Path, **settings: object
) -> subprocess.CompletedProcess:
    """A short run of the demo's step 1 by tests/vllm_grpo.py with one of its faults."""
    given = {
        **SMALL,
        "model_name_or_path": model,
        "data_dir": data,
        "output_dir": out,
        "updates_per_generation": 1,
        "max_steps": 6,
        "save_strategy": "no",
        "mask_truncated_completions": "false",
        "use_vllm": "true",
        "vllm_max_model_length": 1024,
        **settings,
    }
    if on_gpu():
        given |= {"use_cpu": "false", "vllm_gpu_memory_utilization": GPU_MEMORY_SHARE}
    del given["save_steps"]
    words = ["--config", str(REPOSITORY / "recipes/demo/rl_step1.yaml"), *options(given)]
    command = [str(python), str(REPOSITORY / "tests/vllm_grpo.py"), fault, *words]
    with socket.socket() as probe:  # TRL tries the same few ports in each of several runs that start at once
        probe.bind(("127.0.0.1", 0))
        environ = os.environ | ENVIRONMENT | {"MASTER_PORT": str(probe.getsockname()[1])}
    return subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, timeout=1500)


def check_trained(run: subprocess.CompletedProcess, out: Path, base: Path) -> None:
    """It ended, the policy moved, and every rollout was of the policy at its time."""
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    result = json.loads((out / "result.json").read_text())
    assert result["steps"] == 6
    assert result["final_sha256"] != model_fingerprint(str(base))
    log = json.loads((out / "log_history.json").read_text())
    assert len(log) == 6
    assert all(entry[DIFFERENCE] < LIMIT for entry in log), [entry[DIFFERENCE] for entry in log]
    assert all(entry["sampling/importance_sampling_ratio/min"] > 0.8 for entry in log)
    assert all(entry["grad_norm"] > 0 for entry in log)


def check_stopped(run: subprocess.CompletedProcess, out: Path, steps: range) -> None:
    """The guard ended it in one line, before an update used the rollouts, with a checkpoint of what was learned before and
    the rollouts, and nothing passes for a finished stage."""
    assert run.returncode == 2, run.stdout[-2000:] + run.stderr[-4000:]
    assert "Traceback" not in run.stderr
    assert "error: stopped at step" in run.stderr
    stopped = json.loads((out / "stopped.json").read_text())
    assert stopped["monitor"] == "monitor_max_logp_difference"
    assert stopped["step"] in steps
    assert stopped["value"] > stopped["limit"]
    saved = [path.parent.name for path in out.glob("checkpoint-*/trainer_state.json")]
    assert saved == ([f"checkpoint-{stopped['step']}"] if stopped["step"] else [])
    assert (out / "rollouts" / stopped["rollouts"]).exists()
    assert not (out / "result.json").exists()


# ---- vLLM in the training process ------------------------------------------------------------------------------------


def test_colocated_vllm_trains_on_rollouts_of_the_policy(
    python: Path, untied_base: Path, few_studies: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rl_step1"
    run = train(python, "none", out, untied_base, few_studies, vllm_mode="colocate", monitor_max_logp_difference=LIMIT)
    check_trained(run, out, untied_base)


@pytest.mark.parametrize("native", [True, False], ids=["vllms_adapter", "merged_copies"])
def test_rollouts_are_of_the_policy_with_its_adapter(
    python: Path, untied_base: Path, few_studies: Path, tmp_path: Path, native: bool
) -> None:
    """By vLLM's own adapter, and by all weights sent: the sampler is as near to the trainer either way."""
    out = tmp_path / "rl_step1"
    lora = {
        "use_peft": "true",
        "lora_r": 8,
        "lora_target_modules": ["q_proj", "k_proj", "v_proj", "gate_proj", "down_proj"],
    }
    lora |= {"vllm_mode": "colocate", "vllm_enable_sleep_mode": "false", "vllm_native_adapters": str(native).lower()}
    run = train(python, "none", out, untied_base, few_studies, monitor_max_logp_difference=LIMIT, **lora)
    check_trained(run, out, untied_base)


def test_image_tokens_expanded_twice_stop_the_first_update(
    python: Path, untied_base: Path, few_studies: Path, tmp_path: Path
) -> None:
    """With the recipes' own limit."""
    out = tmp_path / "rl_step1"
    check_stopped(train(python, "tokens", out, untied_base, few_studies, vllm_mode="colocate"), out, range(1))


def test_image_embeddings_of_older_weights_show(
    python: Path, untied_base: Path, few_studies: Path, tmp_path: Path
) -> None:
    """The studies come again from the third update on, some before."""
    out = tmp_path / "rl_step1"
    settings = {"vllm_mode": "colocate", "monitor_max_logp_difference": LIMIT}
    check_stopped(train(python, "embeddings", out, untied_base, few_studies, **settings), out, range(1, 4))


def test_rollouts_of_other_weights_stop_the_run(
    python: Path, untied_base: Path, few_studies: Path, tmp_path: Path
) -> None:
    """With the recipes' own limit; the first update's rollouts are still of the policy."""
    out = tmp_path / "rl_step1"
    check_stopped(train(python, "weights", out, untied_base, few_studies, vllm_mode="colocate"), out, range(1, 3))


# ---- vLLM as a server ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(python: Path, untied_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM's server, started as for training."""
    log = tmp_path_factory.mktemp("server") / "vllm.log"
    given = ["--max-model-len", "1024", "--limit-mm-per-prompt", IMAGES, *scale_out()]
    given += ["--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1"]
    with serve(untied_base, "tiny", log, given, {"VLLM_SERVER_DEV_MODE": "1"}) as url:
        yield url.removesuffix("/v1")


def test_a_vllm_server_trains_on_rollouts_of_the_policy(
    python: Path, server: str, untied_base: Path, few_studies: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rl_step1"
    settings = {"vllm_mode": "server", "vllm_server_base_url": server}
    run = train(python, "none", out, untied_base, few_studies, monitor_max_logp_difference=LIMIT, **settings)
    check_trained(run, out, untied_base)


def test_a_server_with_other_weights_stops_the_run(
    python: Path, server: str, untied_base: Path, few_studies: Path, tmp_path: Path
) -> None:
    """It holds the weights of the run before, or of the base model once the policy has moved."""
    out = tmp_path / "rl_step1"
    settings = {"vllm_mode": "server", "vllm_server_base_url": server}
    check_stopped(train(python, "weights", out, untied_base, few_studies, **settings), out, range(3))
