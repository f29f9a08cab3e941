"""QLoRA with bitsandbytes itself, on the CPU: the base is held in 4 bits, adapters learn, what is merged is what was trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rl_runs import options
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[2]
QLORA = {
    "use_peft": "true",
    "load_in_4bit": "true",
    "bnb_4bit_quant_type": "nf4",
    "use_bnb_nested_quant": "true",
    "dtype": "bfloat16",
    "lora_r": 8,
    "lora_target_modules": ["q_proj", "v_proj", "gate_proj"],
    "logging_steps": 1,
    "save_strategy": "no",
}
# The command, and at its end which layers hold how many bits.
RUN = """
import collections, json, sys
import bitsandbytes
import {module} as stage
kept = {{}}
run_training = stage.run_training
def watched(trainer, *args, **kwargs):
    run_training(trainer, *args, **kwargs)
    layers = [module for module in trainer.model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    kept["layers"] = len(layers)
    kept["stored"] = sorted({{str(layer.weight.dtype) for layer in layers}})
    kept["nested"] = all(layer.weight.quant_state.nested for layer in layers)
    kept["trained"] = sorted({{str(p.dtype) for p in trainer.model.parameters() if p.requires_grad}})
stage.run_training = watched
stage.main()
print("KEPT " + json.dumps(kept))
"""


@pytest.fixture(scope="module")
def bitsandbytes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, which the project's own environment doesn't have: it is for GPUs."""
    folder = tmp_path_factory.mktemp("bitsandbytes")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), "bitsandbytes"]
    run = subprocess.run(pip, capture_output=True, text=True)
    if run.returncode:
        pytest.skip(f"bitsandbytes cannot be installed here: {(run.stderr.strip().splitlines() or ['?'])[-1]}")
    return folder


def train(package: Path, module: str, yaml: str, **settings: object) -> dict[str, object]:
    """Run a stage with bitsandbytes at hand; what its layers were."""
    command = [sys.executable, "-c", RUN.format(module=module), "--config", yaml, *options({**QLORA, **settings})]
    environ = os.environ | {"PYTHONPATH": f"{package}:{REPOSITORY}", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout[-1500:] + run.stderr[-3000:]
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("KEPT ")]
    return json.loads(line.removeprefix("KEPT "))


def test_sft_and_step_1_of_a_base_in_4_bits(
    bitsandbytes: Path, tiny_base: Path, phantom_data: Path, tmp_path: Path
) -> None:
    data = {"data_dir": phantom_data, "dataset_weights": 1}
    sft = tmp_path / "sft"
    settings = {"datasets": "phantom_prairie", "model_name_or_path": tiny_base, "output_dir": sft, "max_steps": 12}
    kept = train(bitsandbytes, "recipes.sft", "recipes/demo/sft.yaml", **data, **settings)
    assert kept["layers"] > 20
    assert kept == {"layers": kept["layers"], "stored": ["torch.uint8"], "nested": True, "trained": ["torch.float32"]}
    losses = [entry["loss"] for entry in json.loads((sft / "log_history.json").read_text()) if "loss" in entry]
    assert losses[-1] < losses[0] - 0.2
    _check_merged(sft, tiny_base)
    record = json.loads((sft / "final/merge.json").read_text())
    assert record["mean_logp_difference"] < 0.05 * record["training_moved"]

    step_1 = tmp_path / "rl_step1"
    settings = {"datasets": "phantom_prairie_reread", "model_name_or_path": sft / "final", "output_dir": step_1}
    settings |= {"max_steps": 2, "keep_best": "null", "global_batch_size": 1, "updates_per_generation": 2}
    settings |= {"mask_truncated_completions": "false", "monitor_max_truncated": 1, "monitor_min_unique": 0}
    settings |= {"monitor_max_length_drift": 1e9, "monitor_max_prior_copies": 1, "max_completion_length": 24}
    kept = train(bitsandbytes, "recipes.grpo", "recipes/demo/rl_step1.yaml", **data, **settings)
    assert kept["stored"] == ["torch.uint8"]
    log = [entry for entry in json.loads((step_1 / "log_history.json").read_text()) if "loss" in entry]
    assert len(log) == 2
    assert all(entry["grad_norm"] > 0 for entry in log)
    _check_merged(step_1, sft / "final")


def _check_merged(stage: Path, base: Path) -> None:
    """The final model is a whole one in 16 bits, the base but for the adapted layers; how far it is from adapter and base is kept."""
    merged, before = load_file(stage / "final/model.safetensors"), load_file(base / "model.safetensors")
    assert merged.keys() == before.keys()
    changed = {
        name
        for name, weight in merged.items()
        if not weight.float().equal(before[name].float().to(weight.dtype).float())
    }
    assert changed
    assert all(name.split(".")[-2] in QLORA["lora_target_modules"] for name in changed)
    record = json.loads((stage / "final/merge.json").read_text())
    assert 0 < record["mean_logp_difference"] < 0.02  # of roundings to 16 bits
