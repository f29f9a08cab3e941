"""Small steps of 16-bit weights are kept: float32 weights where they fit, else steps that are rounded at random."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rl_runs import options
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText
from trl import ModelConfig, SFTConfig

from data_prep.prepared import load_studies
from foundation.errors import RecipeError
from launch.planning.assumed import GPUS
from model.architectures import ARCHITECTURES
from model.memory import weights_trained_in
from recipes.sft import build_trainer
from settings.arguments import DataArguments, StageArguments
from settings.batch import set_global_batch
from settings.parser import parse_recipe
from training import small_steps
from training.small_steps import StochasticAdamW, round_stochastically
from training.trainers import ReportTrainer

SMALL_RATE = 5e-6  # the paper's, in RL


def progress(optimizer: type[torch.optim.Optimizer], dtype: torch.dtype, steps: int = 100) -> float:
    """How far weights of usual sizes go along a gradient that does not change, as a share of Adam's own way."""
    torch.manual_seed(0)
    start = torch.randn(20_000) * 0.02
    direction = torch.randn(20_000)
    weight = torch.nn.Parameter(start.to(dtype))
    before = weight.detach().float().clone()
    made = optimizer([weight], lr=SMALL_RATE, weight_decay=0.0)
    for _ in range(steps):
        weight.grad = direction.to(dtype)
        made.step()
    moved = -(weight.detach().float() - before) * direction.sign()
    return (moved.mean() / (SMALL_RATE * steps)).item()


def test_random_rounding_goes_as_far_as_float32_where_bfloat16_stands_still():
    assert progress(torch.optim.AdamW, torch.float32) == pytest.approx(1, abs=0.01)
    assert progress(torch.optim.AdamW, torch.bfloat16) < 0.2
    assert progress(StochasticAdamW, torch.bfloat16) == pytest.approx(1, abs=0.05)


def test_rounding_is_right_on_average_and_exact_where_it_can_be():
    generator = torch.Generator().manual_seed(1)
    for value in (1.001, -0.37001, 3e-5):
        rounded = torch.empty(200_000, dtype=torch.bfloat16)
        round_stochastically(torch.full((200_000,), value), rounded, generator)
        assert len(rounded.unique()) == 2  # the two neighbours
        assert rounded.double().mean().item() == pytest.approx(value, rel=1e-4)
    exact = torch.tensor([1.0, -2.5, 0.0, 2.0**-20])
    round_stochastically(exact, rounded[:4], generator)
    assert torch.equal(rounded[:4].float(), exact)


def test_processes_round_alike_and_a_resumed_run_goes_on_as_it_would_have():
    def run(steps: int, weight: torch.nn.Parameter, optimizer: StochasticAdamW) -> torch.Tensor:
        for _ in range(steps):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        return weight.detach().clone()

    def fresh() -> tuple[torch.nn.Parameter, StochasticAdamW]:
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 999).bfloat16())
        return weight, StochasticAdamW([weight], lr=1e-4, seed=7)

    one, other = fresh(), fresh()
    torch.manual_seed(3)  # what else draws random numbers does not matter
    whole = run(6, *one)
    assert torch.equal(run(3, *other), run(3, *fresh()))
    weight, optimizer = fresh()
    weight.data.copy_(other[0].data)
    optimizer.load_state_dict(other[1].state_dict())
    assert torch.equal(run(3, weight, optimizer), whole)


def trainer_of(base: Path, data: Path, out: Path, **settings: object) -> ReportTrainer:
    given = {"model_name_or_path": base, "data_dir": data, "output_dir": out, "datasets": "phantom_harbor"}
    given |= {"learning_rate": SMALL_RATE, "lr_scheduler_type": "constant", "warmup_steps": 0, "max_steps": 1}
    given |= {"global_batch_size": 2, "per_device_train_batch_size": 2, "save_strategy": "no", "dtype": "bfloat16"}
    types = (DataArguments, StageArguments, ModelConfig, SFTConfig)
    words = ["--config", "recipes/demo/sft.yaml", *options({**given, **settings})]
    data_, stage, model, training = parse_recipe(types, words)
    set_global_batch(stage, training)
    return build_trainer(data_, model, training, load_studies(data_.datasets, data_.data_dir, "train")[:24])


def test_float32_weights_are_trained_where_they_fit_and_saved_for_the_next_stage(tiny_base, phantom_data, tmp_path):
    changes = {}
    for dtype in ("float32", "bfloat16"):
        trainer = trainer_of(tiny_base, phantom_data, tmp_path, dtype=dtype)
        trainer.train()
        after, before = trainer.model.state_dict(), load_file(tiny_base / "model.safetensors")
        changes[dtype] = torch.cat([(after[name] - before[name]).flatten() for name in sorted(before)])
    assert trainer.model.dtype == torch.float32
    assert trainer.args.bf16  # computed with in bfloat16
    moved = [(change != 0).float().mean().item() for change in changes.values()]
    assert moved[1] > 0.95 * moved[0]
    # A gradient that is nearly zero has another sign in bfloat16, and Adam takes signs.
    assert torch.nn.functional.cosine_similarity(*changes.values(), dim=0) > 0.8
    final = tmp_path / "final"
    trainer.save_model(str(final))
    assert {weight.dtype for weight in load_file(final / "model.safetensors").values()} == {torch.float32}
    assert AutoModelForImageTextToText.from_pretrained(final, dtype="auto").dtype == torch.bfloat16
    assert json.loads((final / "config.json").read_text())["text_config"]["dtype"] == "bfloat16"
    following = trainer_of(final, phantom_data, tmp_path / "next", dtype="auto")
    assert torch.equal(
        following.model.state_dict()["model.visual.pos_embed.weight"], after["model.visual.pos_embed.weight"]
    )


def test_bfloat16_weights_are_rounded_at_random_where_float32_ones_do_not_fit(
    tiny_base, phantom_data, tmp_path, monkeypatch
):
    monkeypatch.setattr(small_steps, "_memory", lambda training: 1e6)
    trainer = trainer_of(tiny_base, phantom_data, tmp_path)
    assert trainer.model.dtype == torch.bfloat16
    before = [weight.detach().clone() for weight in trainer.model.parameters()]
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, StochasticAdamW)
    decayed = [group["weight_decay"] for group in trainer.optimizer.param_groups]
    assert len(decayed) == 2  # Trainer's two groups
    assert any((weight != old).any() for weight, old in zip(trainer.model.parameters(), before, strict=True))
    with pytest.raises(RecipeError, match="optim: adafactor"):
        trainer_of(tiny_base, phantom_data, tmp_path, optim="adafactor")


def test_lora_and_sharded_training_keep_their_own_way(tiny_base, phantom_data, tmp_path, monkeypatch):
    adapters = {"use_peft": "true", "lora_target_modules": ["q_proj", "v_proj"]}
    trainer = trainer_of(tiny_base, phantom_data, tmp_path, **adapters)
    assert {weight.dtype for weight in trainer.model.parameters() if weight.requires_grad} == {torch.float32}
    assert trainer.load_as is None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    model = ModelConfig(model_name_or_path=str(tiny_base), dtype="bfloat16")
    training = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert small_steps.weights_dtype(str(tiny_base), model, training) == "bfloat16"


@pytest.mark.parametrize(
    ("size", "gpu", "parallel", "expected"),
    [
        ("2B", "h100", "single", "float32"),
        ("2B", "h100", "ddp", "float32"),
        ("2B", "rtx4090", "single", "bfloat16"),
        ("4B", "h100", "single", "bfloat16"),
        ("4B", "h200", "single", "float32"),
        ("8B", "h100", "zero3", None),
    ],
)
def test_what_fits_decides(size, gpu, parallel, expected):
    parameters = ARCHITECTURES[f"Qwen3-VL-{size}-Instruct"].parameters
    assert weights_trained_in(parameters, parallel, GPUS[gpu].memory) == expected
