"""`make plan`: sizes against the real model classes, memory against what PyTorch does, costs against arithmetic by hand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from rl_runs import options as flags
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from data_prep.prepared import load_studies
from foundation.errors import RecipeError, run_command
from foundation.machine import format_bytes
from foundation.recipe_files import read_yaml
from launch.judges import FRAME_TOKENS, JUDGES
from launch.plan import main
from launch.planning.assumed import GPUS, PUBLISHED_STUDIES, PUBLISHED_TEST, Assumptions, Target, read_assumptions
from launch.planning.budget import budget_table, chosen, options
from launch.planning.fit import adapter_bytes, quantised_bytes
from launch.planning.passes import Passes, draw_passes
from launch.planning.recipe import find, parse, recipe_files
from launch.planning.stage import plan_recipe, plan_training, read_stage
from launch.planning.studies import image_bytes
from launch.planning.text import table
from launch.planning.whole import best_change, whole_recipe
from model.architectures import ARCHITECTURES, Architecture, checkpoint_bytes
from model.memory import Batch, text_layer_bytes, training_memory, vision_layer_bytes
from model.processor import load_processor
from training.lengths import count_tokens

REPOSITORY = Path(__file__).resolve().parents[2]


def target(
    gpus=8,
    gpu="h100",
    parallel="zero3",
    data_dir="data_that_is_not_there",
    judge_gpus=None,
    server_gpus=None,
    overrides=(),
    **assumed,
):
    assumptions = Assumptions(**assumed)
    return Target(gpus, gpu, parallel, Path(data_dir), assumptions, tuple(overrides), judge_gpus, server_gpus)


# ---- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "published"),
    [  # "Model size" of the hub's model cards, billions of parameters
        ("Qwen3-VL-2B-Instruct", 2.127),
        ("Qwen3-VL-4B-Instruct", 4.438),
        ("Qwen3-VL-8B-Instruct", 8.767),
        ("Qwen3-VL-32B-Instruct", 33.36),
    ],
)
def test_parameters_of_the_released_models(name, published):
    assert ARCHITECTURES[name].parameters / 1e9 == pytest.approx(published, rel=2e-3)


def small(layers=2, hidden=128, mlp=256, vision_depth=2, vision_hidden=64):
    return Qwen3VLConfig(
        text_config={
            "vocab_size": 512,
            "hidden_size": hidden,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": vision_depth,
            "hidden_size": vision_hidden,
            "intermediate_size": 2 * vision_hidden,
            "num_heads": 4,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": hidden,
            "num_position_embeddings": 36,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=5,
        video_token_id=6,
        vision_start_token_id=7,
        vision_end_token_id=8,
        tie_word_embeddings=True,
    )


def test_parameters_equal_those_of_the_model_itself():
    config = small()
    model = Qwen3VLForConditionalGeneration(config)
    assert Architecture.from_config(config.to_dict()).parameters == sum(p.numel() for p in model.parameters())


# ---- memory -----------------------------------------------------------------------------------------------------------

ROWS, TOKENS = 4, 80


def saved_bytes(config: Qwen3VLConfig) -> int:
    """Bytes that a forward pass of images and text keeps for the backward pass, parameters left out."""
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(config)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # holds it, so that its address is not given again
        return tensor

    ids = torch.full((ROWS, TOKENS), 9)
    ids[:, 1:10] = config.image_token_id
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == config.image_token_id).int(),
            pixel_values=torch.randn(ROWS * 36, 1536),
            image_grid_thw=torch.tensor([[1, 6, 6]] * ROWS),
        )
    return sum(storage.nbytes() for storage in kept.values())


def test_activations_of_a_layer_are_what_pytorch_saves():
    """The difference between models of 2 and 4 layers (blocks) is that of two layers (blocks)."""
    base = saved_bytes(small())
    text = (saved_bytes(small(layers=4)) - base) / 2 / (ROWS * TOKENS)
    vision = (saved_bytes(small(vision_depth=4)) - base) / 2 / (ROWS * 36)
    arch = Architecture.from_config(small().to_dict())
    assert text_layer_bytes(arch, 4) == pytest.approx(text, rel=0.05)
    assert vision_layer_bytes(arch, 4) == pytest.approx(vision, rel=0.25)


def test_model_states_follow_the_zero_paper():
    """Rajbhandari et al. 2020, Figure 1: 7.5 B parameters on 64 GPUs, 16 bytes a parameter with mixed precision."""
    arch = ARCHITECTURES["Qwen3-VL-8B-Instruct"]

    def states(parallel, gpus):
        parts = training_memory(arch, parallel, gpus, 2, Batch(1, 1))
        return sum(parts[name] for name in ("weights", "gradients", "optimiser")) / arch.parameters

    assert states("zero2", 1) == pytest.approx(16)
    assert states("zero2", 64) == pytest.approx(16.6 / 7.5, rel=0.01)
    assert states("zero3", 64) == pytest.approx(1.9 / 7.5, rel=0.02)


# torchtune's README, bfloat16 weights and AdamW on one GPU, rows packed to one length:
#   Memory and training speed: Llama 3.1 8B, LoRA, 2 rows of 2,048 tokens, RTX 4090: 16.2 GiB
#   Optimization flags: Llama 3.2 3B, all weights, 2 rows of 4,096 tokens, A100: 24.9 GiB with checkpointing, 60.0 GiB without,
#   of which 8.1 GiB are whole logits (51.0 GiB before, 42.9 GiB after the chunked loss, which TRL has too)
LLAMA_8B = Architecture(128256, 4096, 14336, 32, 32, 8, 128, False, 0, 0, 0, vision_num_position_embeddings=0)
LLAMA_3B = Architecture(128256, 3072, 8192, 28, 24, 8, 128, True, 0, 0, 0, vision_num_position_embeddings=0)


@pytest.mark.parametrize(
    ("arch", "tokens", "adapter_rank", "checkpointing", "published"),
    [
        (LLAMA_8B, 2048, 8, True, 16.2),
        (LLAMA_3B, 4096, None, True, 24.9),
        (LLAMA_3B, 4096, None, False, 60.0 - 8.1),
    ],
)
def test_peaks_of_models_of_8_and_3_b_are_those_that_torchtune_measured(
    arch, tokens, adapter_rank, checkpointing, published
):
    """Never planned lower, and at most 16% higher: torchtune compiles the model, and its parts do not all peak at once."""
    trainable = 1.0 if adapter_rank is None else 0.0
    parts = training_memory(arch, "single", 1, 2, Batch(2, tokens), trainable=trainable, checkpointing=checkpointing)
    del parts["overhead"]  # the context is not in PyTorch's figures
    if adapter_rank:  # torchtune's adapters are bfloat16 too
        parts["adapter"] = 8 * arch.lora_parameters(adapter_rank, None)
    assert published <= sum(parts.values()) / 2**30 <= 1.16 * published


def test_the_published_models_have_their_published_sizes():
    assert LLAMA_8B.text_parameters / 1e9 == pytest.approx(8.03, rel=1e-3)
    assert LLAMA_3B.text_parameters / 1e9 == pytest.approx(3.21, rel=1e-3)


STEP = """
import resource, sys, torch
sys.path[:0] = ["tests", "tests/launch"]
from test_plan import small
from transformers import Qwen3VLForConditionalGeneration
rows, hidden, mlp, layers = map(int, sys.argv[1:])
if rows:
    model = Qwen3VLForConditionalGeneration(small(layers=layers, hidden=hidden, mlp=mlp, vision_depth=1))
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.full((rows, 256), 9)
    for _ in range(2):
        states = model.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        states.pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def peak(rows: int, *sizes: int) -> int:
    """Resident bytes of a process that trains a model of (hidden, mlp, layers) for two steps; 0 rows: imports alone."""
    command = [sys.executable, "-c", STEP, str(rows), *map(str, sizes)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return int(
        subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True).stdout
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "hidden", "mlp", "layers", "most"),
    [(1, 768, 2304, 8, "states"), (48, 128, 256, 4, "activations")],
)
def test_peak_of_training_steps_is_as_planned(rows, hidden, mlp, layers, most):
    """Whole optimiser steps, with the imports' memory taken off: what is left is the model's part alone."""
    config = small(layers=layers, hidden=hidden, mlp=mlp, vision_depth=1)
    measured = peak(rows, hidden, mlp, layers) - peak(0, hidden, mlp, layers)
    arch = Architecture.from_config(config.to_dict())
    parts = training_memory(arch, "single", 1, 4, Batch(rows, 256), checkpointing=False, on_gpu=False)
    del parts["overhead"]
    planned = sum(parts.values())
    states = planned - parts["activations"]
    assert (states if most == "states" else parts["activations"]) > 0.75 * planned  # so that its fault would show
    print(f"measured {measured / 2**20:.0f} MiB, planned {planned / 2**20:.0f} MiB: {planned / measured - 1:+.1%}")
    assert measured == pytest.approx(planned, rel=0.1)


GRPO = """
import resource
from recipes import grpo
grpo.main()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def step_1_of(rollouts: int, base: Path, data: Path, out: Path) -> tuple[int, float, list[str]]:
    """Resident bytes of a step 1 with so many rollouts a study, their mean tokens, and its settings."""
    settings = {
        "model_name_or_path": base,
        "data_dir": data,
        "output_dir": out,
        "datasets": "phantom_prairie_reread",
        "dataset_weights": 1,
        "num_generations": rollouts,
        "per_device_train_batch_size": rollouts,
        "global_batch_size": 1,
        "updates_per_generation": 1,
        "mask_truncated_completions": "false",  # an untrained model ends few of its reports
        "monitor_max_truncated": 1,
        "monitor_min_unique": 0,
        "monitor_max_length_drift": 1e9,
        "monitor_max_prior_copies": 1,
        "keep_best": "null",
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    given = flags(settings)
    command = [sys.executable, "-c", GRPO, "--config", "recipes/demo/rl_step1.yaml", *given]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-1000:] + run.stderr[-1000:]
    log = json.loads((out / "log_history.json").read_text())
    return int(run.stdout.split()[-1]), max(entry.get("completions/mean_length", 0) for entry in log), given


def deeper(base: Path, folder: Path, layers: int) -> Path:
    """The tiny model with more layers; of two, what is in work while the backward pass runs would be half."""
    shutil.copytree(base, folder)
    config = Qwen3VLConfig.from_pretrained(base)
    config.text_config.num_hidden_layers = layers
    torch.manual_seed(0)
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_peak_of_an_update_with_many_rollouts_is_as_planned(tiny_base, phantom_data, tmp_path):
    """A study of 128 rollouts beside one of 16, in whole processes: what they differ by is activations, most of it."""
    tiny_base = deeper(tiny_base, tmp_path / "base", 6)
    studies = load_studies(["phantom_prairie_reread"], phantom_data, "train", (), 1)
    longest = max(prompt for prompt, _ in count_tokens(studies, load_processor(str(tiny_base)), True, True))
    measured, planned = [], []
    for rollouts in (16, 128):
        peak, tokens, given = step_1_of(rollouts, tiny_base, phantom_data, tmp_path / str(rollouts))
        overrides = (*given, "--max_completion_length", str(round(tokens)))
        # Prompts as long as this vocabulary makes them; two images of 4 tokens are in the longest.
        lengths = {"template_tokens": longest - 8, "tokens_per_word": 1e-3}
        where = target(0, parallel="single", data_dir=phantom_data, overrides=overrides, **lengths)
        plan = plan_training(REPOSITORY / "recipes/demo/rl_step1.yaml", where)
        measured.append(peak)
        planned.append(plan.peak)
    print(f"measured {measured}, planned {planned}")
    assert planned[1] - planned[0] == pytest.approx(measured[1] - measured[0], rel=0.15)
    for peak, plan in zip(measured, planned, strict=True):
        assert plan == pytest.approx(peak, rel=0.15)


# ---- costs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", sorted({path.parent.name for path in REPOSITORY.glob("recipes/*/sft.yaml")}))
def test_every_yaml_of_every_shipped_recipe_parses(recipe):
    for path in recipe_files(recipe):
        assert parse(path)


def test_the_paper_recipe_on_eight_gpus():
    stages = ("sft", "rl_step1", "rl_step2", "eval")
    plans = {plan.stage: plan for plan in plan_recipe("unirg_cxr", target(), stages)}
    studies = 222_758 - 1_024 + 187_511 + 140_000 + 2_955 - 590
    sft, rl1, rl2 = (plans[name] for name in ("sft", "rl_step1", "rl_step2"))
    assert sft.studies == studies
    assert sft.steps == -(-studies * 3 // 256)
    assert rl1.steps == -(-studies // 256)  # one epoch of 256 prompts a step
    assert rl1.rollouts == rl1.steps * 256 * 16
    assert rl1.judge_calls == 0
    assert rl2.judge_calls == rl2.rollouts
    assert rl2.hours - rl2.judge_hours > rl1.hours  # the reference model's pass on top
    assert "reference" in rl2.memory
    assert "reference" not in rl1.memory
    assert 24 < rl1.hours < 24 * 30  # the paper's eight-GPU nodes for days
    assert sft.fits
    shown = table(list(plans.values()), target())
    for word in ("steps", "rollouts", "GPU hours", "judge", "disk", "assumed", "training_utilisation"):
        assert word in shown


def test_one_24_gb_gpu_does_not_hold_it_and_is_told_what_to_change():
    plan = plan_training(REPOSITORY / "recipes/unirg_cxr/sft.yaml", target(1, "rtx4090", "single"))
    assert not plan.fits
    assert any("LoRA" in line for line in plan.advice)


def test_a_stage_that_a_recipe_lacks_is_named():
    with pytest.raises(RecipeError, match="recipe demo has no rl_step9; it has sft, rl_step1"):
        plan_recipe("demo", target(), ["rl_step9"])


def test_gpus_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(RecipeError, match=r"does not divide by .* 3 processes"):
        plan_training(REPOSITORY / "recipes/unirg_cxr/sft.yaml", target(3))


def test_prepared_data_is_counted_and_not_assumed(phantom_data):
    where = target(0, parallel="single", data_dir=phantom_data)
    plan = plan_training(REPOSITORY / "recipes/demo/rl_step1.yaml", where)
    assert plan.studies == 64 + 64  # prairie's and summit's second reads
    half = replace(where, batch_overrides=("--dataset_weights", "0.5", "1"))
    assert plan_training(REPOSITORY / "recipes/demo/rl_step1.yaml", half).studies == 32 + 64
    settings = yaml.safe_load((REPOSITORY / "recipes/demo/rl_step1.yaml").read_text())
    assert plan.steps == settings["max_steps"]
    assert plan.rollouts == settings["max_steps"] * settings["global_batch_size"] * settings["num_generations"]
    assert 0.7 * 2**30 < plan.peak < 2 * 2**30  # one process; runs of the demo peak at about 1 GiB


def test_a_data_set_that_is_neither_prepared_nor_published_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"phantom_\w+.*make demo-data"):
        plan_training(REPOSITORY / "recipes/demo/sft.yaml", target(0, data_dir=tmp_path))


RL_STEP2 = REPOSITORY / "recipes/unirg_cxr/rl_step2.yaml"


DENSE = ("--judge_model", "Qwen/Qwen3-32B", "--judge_answer_format", "json")


def own_tokens():
    """Of a call: the report, a sixteenth of the reference, what stands around them, half a block."""
    return Assumptions().report_tokens * (1 + 1 / 16) + FRAME_TOKENS + 8


def test_training_waits_for_the_judge_on_gpus_of_its_own():
    """Decoding aside: what no cache holds of each call, through all parameters, on two GPUs."""
    free = {"prefill_utilisation": 0.5, "decode_utilisation": 1e12, "overrides": DENSE}
    plan = plan_training(RL_STEP2, target(judge_gpus=2, **free))
    without = plan_training(RL_STEP2, target(judge_gpus=0, **free))
    flops = 2 * 32.8e9 * plan.judge_calls * own_tokens()
    assert plan.judge_hours == pytest.approx(flops / (989e12 * 0.5) / 2 / 3600, rel=1e-4)
    assert plan.hours == pytest.approx(without.hours + plan.judge_hours)
    assert plan.gpu_hours == pytest.approx(plan.hours * 10)
    assert without.judge_hours == 0
    assert "not in the hours" in table([without], target(judge_gpus=0))


def test_decoding_of_the_judge_reads_weights_and_every_calls_cache():
    """One call at a time: each of 97 tokens reads 65.6 GB of weights and the cache of rubric, frame, reports and half an answer."""
    only = {"max_concurrent": 1, "prefill_utilisation": 1e12, "decode_utilisation": 0.5}
    plan = plan_training(RL_STEP2, target(judge_gpus=1, overrides=DENSE, **only))
    step = (2 * 32.8e9 + 262_144 * (1508 + FRAME_TOKENS + 280 + 97 / 2)) / (3.35e12 * 0.5)
    assert plan.judge_hours == pytest.approx(plan.judge_calls * 97 * step / 3600)


def test_digits_and_a_mixture_of_experts_cost_a_part_of_it():
    dense, digits, mixture = (
        plan_training(RL_STEP2, target(judge_gpus=1, overrides=words))
        for words in (DENSE, (*DENSE[:2], "--judge_answer_format", "digits"), ())
    )
    assert dense.judge_tokens_out / digits.judge_tokens_out == pytest.approx(97 / 13)
    assert dense.judge_hours > 2 * digits.judge_hours > 3 * mixture.judge_hours
    assert mixture.judge_cached > 0.8


def test_a_mixture_reads_what_some_token_takes():
    """One token reads the active parameters, 256 tokens nearly all."""
    kind = JUDGES["Qwen/Qwen3-30B-A3B-Instruct-2507"]
    assert kind.parameters_read(1) == pytest.approx(kind.active)
    assert kind.active < kind.parameters_read(2) < 2 * kind.active
    assert kind.parameters_read(256) == pytest.approx(kind.parameters, rel=1e-5)
    assert JUDGES["Qwen/Qwen3-8B"].parameters_read(1) == 8.2e9


def test_a_judge_on_this_machine_shares_the_gpus_and_one_elsewhere_has_none():
    beside = plan_training(RL_STEP2, target())
    assert (beside.judge_gpus, beside.judge_share, beside.judge_copies) == (0, 0.15, (1, 8))
    assert beside.gpu_hours == pytest.approx(beside.hours * 8)
    assert beside.fits
    assert "1 × 8 GPUs" in table([beside], target())
    half = plan_training(RL_STEP2, target(gpus=4, judge_gpus=4))
    assert beside.hours < 0.6 * half.hours  # neither waits on idle GPUs
    elsewhere = target(overrides=("--judge_base_url", "https://judge.example/v1"))
    plan = plan_training(RL_STEP2, elsewhere)
    assert (plan.judge_gpus, plan.judge_share) == (0, 0)


def test_a_judge_beside_leaves_less_memory_for_training():
    small = plan_training(RL_STEP2, target(gpus=4, overrides=("--judge_model", "Qwen/Qwen3-8B")))
    assert small.judge_share == 0.15
    assert not small.fits
    assert any("beside the judge" in line for line in small.advice)


def test_a_judge_that_takes_longest_or_does_not_fit_is_said():
    slow = plan_training(RL_STEP2, target(judge_gpus=1, overrides=DENSE))
    assert slow.judge_hours > slow.hours / 2
    assert any("the judge is the bottleneck" in line and "JUDGE_GPUS=2" in line for line in slow.advice)
    assert not any("bottleneck" in line for line in plan_training(RL_STEP2, target(judge_gpus=16)).advice)
    small = plan_training(RL_STEP2, target(gpu="a100-40", judge_gpus=1))
    assert not small.fits
    assert any("one copy of the judge takes 2 GPUs" in line for line in small.advice)


def test_the_whole_recipe_is_planned_under_three_days_on_eight_h100s_and_says_on_which_assumption():
    plans = plan_recipe("unirg_cxr", target())
    assert all(plan.fits for plan in plans)
    assert sum(plan.hours for plan in plans) < 72
    assumed = Assumptions()
    assert (assumed.prefill_utilisation, assumed.decode_utilisation, assumed.max_concurrent) == (0.4, 0.4, 256)
    assert "measured" in plans[0].hours_by
    # README.md and launch/README.md give both figures.
    days, waiting = (sum(getattr(plan, name) for plan in plans) / 24 for name in ("hours", "waiting"))
    assert (f"{days:.1f}", f"{days + waiting:.1f}") == ("2.9", "3.2")
    assert whole_recipe(plans).startswith(f"whole recipe: {days:.1f} days, ")
    assert whole_recipe(plans).endswith("; 3.2 days where processes wait for the longest forward pass of all")


def lengths(tokens, reports):
    return np.stack([np.broadcast_to(tokens, len(reports)), reports], 1).astype(float)


def test_passes_of_one_length_are_all_kept_or_none_and_nobody_waits():
    given = {"processes": 8, "passes": 32, "rows": 1, "together": 16}
    same = lengths(500, np.full(100, 140))  # 500 + 16 × 140 + 16, of prompt's last tokens
    assert draw_passes(same, most=2756, **given) == Passes(1.0, 1.0)
    assert draw_passes(same, most=2755, **given) == Passes(0.0, 1.0)
    assert draw_passes(same, most=None, **given) == Passes(0.0, 1.0)
    assert draw_passes(same, most=500 + 16 * 101, longest_report=100, **given).kept == 1.0


def test_a_pass_is_kept_where_it_is_short_on_every_process_by_hand():
    """Half of the studies are long: of one process half of the passes are kept, of two a quarter, so many tokens."""
    mixed = lengths(0, [100, 300])
    one = draw_passes(mixed, processes=1, passes=1, rows=1, most=200)
    assert one.kept == pytest.approx(50 / 200, abs=0.01)
    assert one.longest == 1.0
    two = draw_passes(mixed, processes=2, passes=1, rows=1, most=200)
    assert two.kept == pytest.approx(25 / 200, abs=0.01)
    assert two.longest == pytest.approx((0.25 * 100 + 0.75 * 300) / 200, abs=0.01)


def test_passes_by_length_keep_more_and_wait_less():
    spread = lengths(500, np.random.default_rng(1).gamma(4, 35, 4096))
    given = {"processes": 8, "passes": 32, "rows": 1, "together": 16, "most": 3328}
    at_random, by_length = draw_passes(spread, **given), draw_passes(spread, by_length=True, **given)
    assert at_random.kept < 0.1 < 0.4 < by_length.kept
    assert by_length.longest < 1.2 < 1.6 < at_random.longest
    packed = draw_passes(spread, processes=8, passes=8, rows=4, most=4096, packed=True)
    assert packed == Passes(1.0, 1.0)


def test_lengths_of_prepared_data_are_its_own(phantom_data):
    """Each study's words, instead of an assumed spread."""
    where = target(0, parallel="single", data_dir=phantom_data)
    stage, _ = read_stage(REPOSITORY / "recipes/demo/rl_step1.yaml", where)
    table = pq.read_table(phantom_data / "phantom_prairie_reread" / "train.parquet").to_pylist()
    words = {len(f"{row['findings'] or ''} {row['impression'] or ''}".split()) for row in table}
    assert {round(length / where.assume.tokens_per_word) for length in stage.size.drawn[:, 1]} >= words
    assert stage.size.drawn.mean(0) == pytest.approx([stage.size.prompt, stage.size.report], rel=0.02)
    assumed, _ = read_stage(RL_STEP2, target())
    assert assumed.size.drawn.mean(0) == pytest.approx([assumed.size.prompt, assumed.size.report], rel=0.02)
    assert assumed.size.drawn[:, 1].std() / assumed.size.drawn[:, 1].mean() == pytest.approx(0.49, rel=0.03)


def test_each_part_says_what_its_time_rests_on_and_the_parts_are_the_whole():
    for plan in plan_recipe("unirg_cxr", target()):
        assert plan.hours_of.keys() == plan.rests_on.keys()
        assert sum(plan.hours_of.values()) == pytest.approx(plan.hours)
        assert set(plan.rests_on.values()) <= {"measured", "measured, lengths assumed", "assumed"}
        updates = {"sft": "measured", "rl_step1": "measured, lengths assumed", "rl_step2": "measured, lengths assumed"}
        assert plan.rests_on.get("update") == updates.get(plan.stage)


@pytest.mark.parametrize(
    ("stage", "file", "seconds", "overrides"),
    [
        ("sft", "sft_lora.yaml", "update_seconds", ()),
        ("grpo", "rl_step1_lora.yaml", "update_only_seconds", ("--share_prompts", "false", "--beta", "0")),
    ],
)
def test_a_stage_of_the_benchmarks_lengths_takes_the_seconds_that_it_measured(stage, file, seconds, overrides):
    """An optimiser step of the recipe's own size, of studies as long as the benchmark's, on one GPU of its kind."""
    measured = json.loads((REPOSITORY / "benchmarks/gpu.json").read_text())
    (entry,) = (entry for entry in measured if entry["stage"] == stage)
    image = 256
    where = target(
        1,
        parallel="single",
        context_tokens=40,
        template_tokens=round(entry["prompt_tokens"] - image - 40),
        report_tokens=entry["report_tokens"],
        overrides=("--datasets", "iu_xray", "--checkpoint_above_tokens", "null", *overrides),
    )
    plan = plan_training(REPOSITORY / "recipes/unirg_cxr" / file, where)
    assert "measured" in plan.hours_by
    rows = 256 * (16 if stage == "grpo" else 1)
    expected = entry[seconds] * rows / entry["rows_an_update"]
    assert plan.hours_of["update"] * 3600 / plan.steps == pytest.approx(expected, rel=0.01)


def test_forward_passes_that_keep_their_activations_cost_time_or_memory():
    sft = REPOSITORY / "recipes/unirg_cxr/sft.yaml"
    kept, all_checkpointed = (
        plan_training(sft, target(overrides=("--checkpoint_above_tokens", n))) for n in ("4096", "1")
    )
    assert kept.hours / all_checkpointed.hours == pytest.approx(6 / 8)  # no pass of usual lengths is above 4,096 tokens
    assert kept.memory["activations"] > 2 * all_checkpointed.memory["activations"]


def test_the_change_that_saves_most_is_one_that_fits_and_saves_it():
    plans = [plan_training(RL_STEP2, target(judge_gpus=1, overrides=DENSE))]
    saved, change = best_change(plans, target(judge_gpus=1, overrides=DENSE), plan_training)
    assert "judge_model: Qwen/Qwen3-30B-A3B-Instruct-2507" in change or "judge_answer_format: digits" in change
    assert 0 < saved < plans[0].hours


def test_a_vllm_server_makes_rollouts_on_gpus_of_its_own():
    server = ("--vllm_mode", "server", "--vllm_server_base_url", "http://127.0.0.1:8000")
    path = REPOSITORY / "recipes/unirg_cxr/rl_step1.yaml"
    one, four = (plan_training(path, target(overrides=server, server_gpus=n)) for n in (None, 4))
    assert (one.server_gpus, four.server_gpus) == (1, 4)
    assert four.hours < one.hours
    assert one.gpu_hours == pytest.approx(one.hours * 9)
    assert not one.generating  # nothing of vLLM on the GPUs that train


def test_adapters_are_float32_with_gradients_and_both_moments():
    """What PEFT makes of a bfloat16 model, and 16 bytes a parameter of it."""
    config = small()
    model = Qwen3VLForConditionalGeneration(config).to(torch.bfloat16)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules=targets))
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    arch = Architecture.from_config(config.to_dict())
    assert arch.lora_parameters(8, targets) == sum(p.numel() for p in trained)
    assert arch.lora_parameters(8, ["q_proj"]) == 2 * 8 * (128 + 128)
    assert adapter_bytes(100, "single", 1) == 1600
    assert adapter_bytes(100, "zero3", 8) == 200
    assert adapter_bytes(100, "zero2", 8) == 400 + 150
    plan = plan_training(REPOSITORY / "recipes/unirg_cxr/sft_lora.yaml", target(1, parallel="single"))
    assert plan.memory["adapter"] == 16 * ARCHITECTURES["Qwen3-VL-8B-Instruct"].lora_parameters(64, targets)


def test_a_base_in_4_bits_fits_a_24_gb_gpu_by_sft_and_a_48_gb_one_by_rl():
    arch = ARCHITECTURES["Qwen3-VL-8B-Instruct"]
    embeddings = 2 * arch.vocab_size * arch.hidden_size
    assert quantised_bytes(arch, 8, False) == arch.parameters - embeddings + 2 * embeddings
    assert quantised_bytes(arch, 4, False) > quantised_bytes(arch, 4, True) > (arch.parameters - embeddings) / 2
    for stage, gpu in (("sft", "rtx4090"), ("rl_step1", "l40s"), ("rl_step2", "l40s")):
        plan = plan_training(REPOSITORY / f"recipes/unirg_cxr/{stage}_qlora.yaml", target(1, gpu, parallel="single"))
        assert plan.memory["weights"] == quantised_bytes(arch, 4, True)
        assert plan.peak < GPUS[gpu].memory, stage
    assert 5.5 < quantised_bytes(arch, 4, True) / 2**30 < 6.5


def test_what_keeps_small_steps_is_said_and_counted():
    path = REPOSITORY / "recipes/unirg_cxr/sft.yaml"
    single = target(1, parallel="single")
    assert "steps that are rounded at random" in table([plan_training(path, single)], single)
    assert plan_training(path, target()).notes == []
    small = target(1, parallel="single", overrides=("--model_name_or_path", "Qwen/Qwen3-VL-2B-Instruct"))
    plan = plan_training(path, small)
    assert "trained in float32" in plan.notes[0]
    n = ARCHITECTURES["Qwen3-VL-2B-Instruct"].parameters
    states = sum(plan.memory[name] for name in ("weights", "16-bit copy", "gradients", "optimiser"))
    assert states == pytest.approx((4 + 2 + 4 + 8) * n)
    assert plan.fits
    lora = REPOSITORY / "recipes/unirg_cxr/sft_lora.yaml"
    assert plan_training(lora, target(1, parallel="single")).notes == []  # adapters are float32


def test_activations_are_those_of_rows_with_two_images(monkeypatch):
    """Few priors are fewer tokens; the largest batch is the same."""
    path = REPOSITORY / "recipes/unirg_cxr/sft.yaml"
    plans = []
    for share in (0.9, 0.1):
        monkeypatch.setattr("launch.planning.studies.PUBLISHED_PRIORS", dict.fromkeys(PUBLISHED_STUDIES, share))
        plans.append(plan_training(path, target()))
    many, few = plans
    assert many.tokens_trained > few.tokens_trained
    assert many.memory["activations"] == few.memory["activations"]
    alone = plan_training(path, target(overrides=("--longitudinal", "false")))
    assert alone.memory["activations"] < few.memory["activations"]


# The four data sets by their published counts: the share of studies with a prior, and the mean prompt's tokens.
WITH_PRIOR = (0.71 * 221_734 + 0.32 * 140_000) / 551_610
PROMPT = 75 + 40 + (1 + WITH_PRIOR) * 256 + WITH_PRIOR * 140


def test_a_shared_prompt_is_counted_once_a_study_by_hand():
    """The recipe's step 1 at the assumed lengths: 75 + 40 + 1.367 × 256 + 0.367 × 140 = 516 prompt tokens, 140 a report."""
    path = REPOSITORY / "recipes/unirg_cxr/rl_step1.yaml"
    ours, theirs = (
        plan_training(path, target(overrides=("--share_prompts", share, "--per_device_train_batch_size", "16")))
        for share in ("true", "false")
    )
    assert ours.steps == theirs.steps == 2155  # 551,610 studies / 256
    rollouts = 2155 * 4096
    assert theirs.tokens_trained == pytest.approx(rollouts * (PROMPT + 140))
    assert ours.tokens_trained == pytest.approx(rollouts * (PROMPT / 16 + 1 + 140))
    # 8,192 rollouts a generation on 8 GPUs: 64 studies of 1.367 films of 6 MiB each
    assert ours.memory["films"] == pytest.approx(64 * (1 + WITH_PRIOR) * 6 * 2**20)
    assert theirs.memory["films"] == pytest.approx(16 * ours.memory["films"])
    assert ours.memory["activations"] < theirs.memory["activations"]
    assert ours.hours_of["films"] == pytest.approx(2155 * 256 * (1 + WITH_PRIOR) * 0.026 / 8 / 3600)
    assert theirs.hours_of["films"] == pytest.approx(32 * ours.hours_of["films"])
    assert ours.hours == pytest.approx(sum(ours.hours_of.values()))
    assert 0.2 < ours.hours_of["update"] / theirs.hours_of["update"] < 0.3


def test_parts_of_a_study_pay_for_its_prompt_again():
    path = REPOSITORY / "recipes/unirg_cxr/rl_step1.yaml"
    whole, half = (
        plan_training(path, target(overrides=("--per_device_train_batch_size", rows))) for rows in ("16", "8")
    )
    assert half.tokens_trained - whole.tokens_trained == pytest.approx(2155 * 4096 * PROMPT / 16)


def test_disk_counts_each_data_set_and_each_download_once():
    stages = ("sft", "rl_step1", "rl_step2", "eval")
    plans = plan_recipe("unirg_cxr", target(), stages)
    studies = sum(PUBLISHED_STUDIES.values()) + sum(PUBLISHED_TEST.values())
    assert image_bytes(plans[0].datasets, Path("no"), Assumptions()) == studies * Assumptions().image_bytes
    shown = table(plans, target())
    assert shown.count("base model, downloaded") == 1
    assert f"{format_bytes(2 * ARCHITECTURES['Qwen3-VL-8B-Instruct'].parameters)}: base model, downloaded" in shown
    assert "judge, downloaded" in shown
    assert "judge, downloaded" not in table(plan_recipe("unirg_cxr", target(judge_gpus=0), stages), target())


def test_prepared_images_are_counted_over_all_splits(phantom_data):
    splits = [phantom_data / "phantom_prairie" / f"{split}.parquet" for split in ("train", "validation", "test")]
    studies = sum(pq.read_metadata(path).num_rows for path in splits if path.is_file())
    assert studies >= 64
    assert image_bytes(["phantom_prairie"], phantom_data, Assumptions(image_bytes=10)) == 10 * studies


def test_judge_prices_make_a_sum(tmp_path):
    text = (REPOSITORY / "recipes/unirg_cxr/rl_step2.yaml").read_text()
    path = tmp_path / "rl_step2.yaml"
    path.write_text(text + "judge_price_input: 2.0\njudge_price_output: 8.0\n")
    (tmp_path / "sft.yaml").write_text((REPOSITORY / "recipes/unirg_cxr/sft.yaml").read_text())
    plan = plan_training(path, target())
    expected = (plan.judge_tokens_in * 2 + plan.judge_tokens_out * 8) / 1e6
    assert plan.judge_dollars == pytest.approx(expected)


def test_checkpoints_by_hand():
    assert checkpoint_bytes(10, {"dtype": "float32"}) == 10 * (4 + 8)
    assert checkpoint_bytes(10, {"dtype": "bfloat16"}) == 10 * (2 + 12)
    assert checkpoint_bytes(10, {"dtype": "bfloat16", "save_only_model": True}) == 20


@pytest.mark.parametrize("pair", ["context_token=1", "context_tokens=much", "context_tokens=0", "context_tokens=inf"])
def test_a_wrong_assumption_is_refused(pair):
    with pytest.raises(RecipeError, match="--assume"):
        read_assumptions([pair])


def test_an_assumption_changes_the_result():
    path = REPOSITORY / "recipes/unirg_cxr/sft.yaml"
    slow, fast = (plan_training(path, target(training_utilisation=share)) for share in (0.1, 0.35))
    assert slow.gpu_hours == pytest.approx(3.5 * fast.gpu_hours)
    assert slow.hours_by == "assumed utilisation 0.1"


def test_hours_follow_what_was_measured_on_such_a_gpu():
    entries = {entry["stage"]: entry for entry in json.loads((REPOSITORY / "benchmarks/gpu.json").read_text())}
    path = REPOSITORY / "recipes/unirg_cxr/sft_lora.yaml"
    as_measured = target(overrides=("--checkpoint_above_tokens", "1"))
    plan = plan_training(path, replace(as_measured, gpus=1, parallel="single"))
    assert "measured" in plan.hours_by
    # The benchmark's own recipe and model: its tokens a second give the hours, but for the adapter's share of the arithmetic.
    assert plan.hours == pytest.approx(plan.tokens_trained / entries["sft"]["tokens_per_gpu_second"] / 3600, rel=0.01)
    other = plan_training(path, replace(target(), gpus=1, parallel="single", kind_name="a100"))
    assert other.hours_by == "assumed utilisation 0.2"


def test_memory_is_what_an_h100_used():
    """LoRA by SFT of the 8B model: planned for rows that all have a prior, measured on rows of which half have."""
    (entry,) = (
        entry for entry in json.loads((REPOSITORY / "benchmarks/gpu.json").read_text()) if entry["stage"] == "sft"
    )
    parsed = parse(REPOSITORY / entry["recipe"])
    model = find(parsed, "ModelConfig")
    arch = ARCHITECTURES["Qwen3-VL-8B-Instruct"]
    assert arch.parameters == entry["model_parameters"]
    rows = entry["per_device_train_batch_size"]
    batch = Batch(rows=rows, tokens=entry["prompt_tokens"] + entry["report_tokens"], images=1.5)
    parts = training_memory(arch, "single", 1, 2, batch, trainable=0.0)
    parts["adapter"] = adapter_bytes(arch.lora_parameters(model.lora_r, model.lora_target_modules), "single", 1)
    assert sum(parts.values()) / 2**20 == pytest.approx(entry["memory_in_use_mib"], rel=0.08)


def test_the_command_prints_json_and_one_line_for_a_mistake(monkeypatch, capsys):
    command = ["plan", "--gpus", "8", "--json", "--stage", "sft", "eval"]
    monkeypatch.setattr(sys, "argv", command)
    run_command(main)
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert [stage["stage"] for stage in stages] == ["sft", "eval"]
    monkeypatch.setattr(sys, "argv", [*command, "--recipe", "nothing"])
    with pytest.raises(SystemExit) as stop:
        run_command(main)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no recipe 'nothing'")
    assert error.count("\n") == 1
    monkeypatch.setattr(sys, "argv", ["plan", "--gpus", "4", "--nodes", "2", "--json", "--stage", "sft"])
    run_command(main)
    assert json.loads(capsys.readouterr().out)["gpus"] == 8
    monkeypatch.setattr(sys, "argv", ["plan", "--gpus", "abc"])
    with pytest.raises(SystemExit) as stop:
        run_command(main)
    assert stop.value.code == 2
    assert "invalid int value: 'abc'" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["plan", "--gpu", "h10"])
    with pytest.raises(SystemExit) as stop:
        run_command(main)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: argument --gpu: invalid choice: 'h10'")
    assert "h100" in error
    assert error.count("\n") == 1


def test_the_command_ends_with_status_1_where_a_stage_does_not_fit(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["plan", "--gpus", "1", "--gpu", "rtx4090", "--stage", "sft"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    assert "DOES NOT FIT" in capsys.readouterr().out


def test_checkpoints_that_keep_their_model_alone_are_counted_as_such():
    """All rated afterwards: two whole ones kept, a third while it is written, and the final model."""
    overrides = ("--keep_best", "null", "--keep_optimizer_states", "2")
    (plan,) = plan_recipe("unirg_cxr", target(overrides=overrides), ["rl_step1"])
    parameters = ARCHITECTURES["Qwen3-VL-8B-Instruct"].parameters
    assert plan.checkpoints > 10
    assert plan.checkpoint_bytes == 3 * 14 * parameters + (plan.checkpoints - 3 + 1) * 2 * parameters
    assert not any("optimiser state" in line for line in plan.advice)


def test_the_checkpoint_that_is_written_before_an_older_one_goes_is_counted():
    parameters = ARCHITECTURES["Qwen3-VL-8B-Instruct"].parameters
    for given, more in (
        (("--save_total_limit", "2"), 14 * parameters),
        (("--save_total_limit", "2", "--save_only_model", "true"), 2 * parameters),
        (("--save_total_limit", "null"), 0),
        (
            ("--save_total_limit", "3", "--keep_optimizer_states", "1"),
            2 * parameters,
        ),  # its states: in `checkpoint_bytes`
    ):
        (plan,) = plan_recipe("unirg_cxr", target(overrides=("--keep_best", "null", *given)), ["rl_step1"])
        assert plan.momentary_bytes == more, given


def test_the_best_and_the_newest_checkpoint_take_little_disk():
    """Rated while training: the newest whole and two models; what is more for a moment is said."""
    (plan,) = plan_recipe("unirg_cxr", target(), ["rl_step1"])
    parameters = ARCHITECTURES["Qwen3-VL-8B-Instruct"].parameters
    assert plan.saves > 10
    assert plan.checkpoints == 3
    assert plan.checkpoint_bytes == (14 + 2 + 2) * parameters
    assert plan.checkpoint_bytes <= 150 * 2**30
    assert plan.momentary_bytes == 14 * parameters
    assert "114.3 GiB more while one is written" in table([plan], target())
    assert any(f"validation: {plan.saves} × 1,024 greedy reports" in note for note in plan.notes)


def test_two_stages_counted_by_hand():
    """SFT and step 1 of the four data sets, by plain arithmetic: within a tenth."""
    studies = {"mimic": 221_734, "chexpert_plus": 187_511, "rexgradient": 140_000, "iu_xray": 2_365}
    with_prior = 0.71 * studies["mimic"] + 0.32 * studies["rexgradient"]
    total = sum(studies.values())
    image, report, template, context = 512 * 512 / 32**2, 140, 75, 40  # a token of Qwen3-VL is 32 × 32 pixels
    prompt = template + context + image + with_prior / total * (image + report)
    sft, rl = plan_recipe("unirg_cxr", target(), ["sft", "rl_step1"])
    assert sft.steps == pytest.approx(total * 3 / 256, rel=0.001)
    assert sft.tokens_trained == pytest.approx(3 * total * (prompt + report), rel=0.1)
    assert rl.rollouts == pytest.approx(total * 16, rel=0.001)
    assert rl.tokens_generated == pytest.approx(total * 16 * report, rel=0.1)


def test_a_recipe_is_its_four_stages_and_no_variant():
    assert [plan.stage for plan in plan_recipe("unirg_cxr", target())] == ["sft", "rl_step1", "rl_step2", "eval"]


def test_a_judge_that_would_pass_its_limits_is_said_before():
    (slow,) = plan_recipe(
        "unirg_cxr", target(judge_gpus=1, overrides=(*DENSE, "--judge_batch_timeout", "300")), ["rl_step2"]
    )
    assert slow.rollouts_a_generation == 2 * 4_096
    (line,) = [line for line in slow.advice if "judge_batch_timeout" in line]
    assert "8,192 rollouts are judged in" in line
    assert "judge_batch_timeout is 300" in line
    (shipped,) = plan_recipe("unirg_cxr", target(judge_gpus=1), ["rl_step2"])
    assert not [line for line in shipped.advice if "_timeout" in line]


# ---- less: smaller models, a share of the data -------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["2b", "4b"])
@pytest.mark.parametrize("stage", ["sft", "rl_step1", "rl_step2"])
def test_a_variant_of_another_size_differs_in_its_model_and_its_folder_alone(stage, size):
    folder = REPOSITORY / "recipes/unirg_cxr"
    own, other = (read_yaml(folder / f"{name}.yaml") for name in (stage, f"{stage}_{size}"))
    differing = {key for key in own.keys() | other.keys() if own.get(key) != other.get(key)}
    assert differing == {"model_name_or_path", "output_dir"}
    assert other["output_dir"] == own["output_dir"].replace("unirg_cxr", f"unirg_cxr_{size}")


def test_a_variant_is_planned_by_its_own_model_at_every_stage():
    small_, large = (
        plan_recipe("unirg_cxr", target(), [f"sft_{size}", f"rl_step1_{size}", "eval"]) for size in ("2b", "4b")
    )
    ratio = ARCHITECTURES["Qwen3-VL-4B-Instruct"].parameters / ARCHITECTURES["Qwen3-VL-2B-Instruct"].parameters
    assert large[0].hours / small_[0].hours == pytest.approx(ratio, rel=0.01)
    for one, other in zip(small_, large, strict=True):
        assert one.memory["weights"] < other.memory["weights"]


def test_a_budget_names_a_model_and_a_share_that_fit_it_and_the_commands():
    one_gpu = target(gpus=1, parallel="single")
    found = options("unirg_cxr", one_gpu, 24)
    assert [option.variant for option in found] == ["", "lora", "4b", "2b"]
    assert found[0].share == 0  # all weights of the 8 B, on one GPU
    assert found[1].share < found[2].share < found[3].share < 1
    taken = chosen(found)
    shown = budget_table("unirg_cxr", one_gpu, 24)
    assert f"make sft GPUS=1 VARIANT={taken.variant} ARGS=" in shown
    assert "make rl-step2" not in shown  # its judge has no room
    words = ("--dataset_weights", *[f"{taken.share:.3f}"] * 4)
    plans = plan_recipe(
        "unirg_cxr", replace(one_gpu, batch_overrides=words), [f"{stage}_{taken.variant}" for stage in taken.stages]
    )
    assert sum(plan.hours for plan in plans) == pytest.approx(24, rel=0.02)


def test_a_budget_that_holds_the_whole_recipe_takes_it_whole():
    shown = budget_table("unirg_cxr", target(), 24 * 30)
    assert "make rl-step2 GPUS=8\n" in shown
    assert "dataset_weights" not in shown
