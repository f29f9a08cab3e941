"""Nothing is cut: studies beyond a limit are left out and counted; every study is in every epoch of RL."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from rl_runs import SMALL, options
from trl import GRPOConfig
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling
from trl.trainer.utils import RepeatSampler

from data_prep.prepared import Studies, load_studies
from foundation.errors import RecipeError
from model.processor import load_processor
from recipes import grpo, sft
from training.data import completion_dataset
from training.lengths import count_tokens, counted_once, fitting
from training.trainers import WholeEpochs


@pytest.fixture(scope="module")
def counted(tiny_base: Path, phantom_data: Path) -> list[int]:
    studies = load_studies(["phantom_prairie"], phantom_data, "train")
    return [sum(tokens) for tokens in count_tokens(studies, load_processor(str(tiny_base)), True, True)]


def test_the_tokens_counted_are_those_that_train(tiny_base: Path, phantom_data: Path, counted: list[int]) -> None:
    studies = load_studies(["phantom_prairie"], phantom_data, "train")[:8]
    rows = completion_dataset(studies, True, True)
    collator = DataCollatorForVisionLanguageModeling(
        processor=load_processor(str(tiny_base)), max_length=None, completion_only_loss=True
    )
    trained = [collator([rows[i]])["attention_mask"].sum().item() for i in range(len(rows))]
    assert trained == counted[:8]
    assert len(set(trained)) > 2


def test_they_are_counted_once(tiny_base: Path, phantom_data: Path, tmp_path: Path, monkeypatch) -> None:
    studies, processor = load_studies(["phantom_prairie"], phantom_data, "train"), load_processor(str(tiny_base))
    first = counted_once(studies, processor, True, True, "sha", tmp_path)
    monkeypatch.setattr("training.lengths.count_tokens", lambda *given: pytest.fail("counted again"))
    assert counted_once(Studies(studies.table.slice(0, 5)), processor, True, True, "sha", tmp_path) == first[:5]
    with pytest.raises(pytest.fail.Exception):
        counted_once(studies, processor, False, True, "sha", tmp_path)  # other prompts


def run(module, recipe: str, monkeypatch: pytest.MonkeyPatch, **settings: object) -> dict:
    monkeypatch.setattr(sys, "argv", [recipe, "--config", f"recipes/demo/{recipe}.yaml", *options(settings)])
    module.main()
    return json.loads((Path(settings["output_dir"]) / "result.json").read_text())


def test_studies_beyond_max_length_are_left_out_and_counted(
    counted: list[int], tiny_base: Path, phantom_data: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    given = {"model_name_or_path": tiny_base, "data_dir": phantom_data, "datasets": "phantom_prairie"}
    given |= {"output_dir": tmp_path / "sft", "max_steps": 1, "save_strategy": "no"}
    given |= {"global_batch_size": 4, "per_device_train_batch_size": 4}
    limit = sorted(counted)[len(counted) // 2]
    with pytest.raises(RecipeError, match="max_length is 64, and the shortest of 64 studies has"):
        run(sft, "sft", monkeypatch, **given, max_length=64)
    result = run(sft, "sft", monkeypatch, **given, max_length=limit)
    fits = sum(tokens <= limit for tokens in counted)
    assert result["studies"] == fits
    assert f"{len(counted) - fits} left out" in capsys.readouterr().out


def test_a_study_that_vllm_has_no_room_for_is_left_out(tmp_path: Path) -> None:
    given = {"num_generations": 8, "max_completion_length": 512, "use_vllm": True, "vllm_max_model_length": 1024}
    training = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **given)
    rows, line = fitting(["a", "b", "c"], [(512, 40), (513, 40), (300, 600)], training)
    assert rows == [0, 2]  # a report takes what max_completion_length says, however long the reference is
    assert "the longest of 3 studies is b with 1,025 tokens; vllm_max_model_length is 1,024: 1 left out" in line
    training.use_vllm = False
    assert fitting(["a"], [(5000, 40)], training)[0] == [0]


def test_fewer_studies_than_a_generation_are_one_line(
    tiny_base: Path, phantom_data: Path, tmp_path: Path, monkeypatch
) -> None:
    given = {**SMALL, "model_name_or_path": tiny_base, "data_dir": phantom_data, "output_dir": tmp_path / "rl"}
    given |= {"dataset_weights": 0.05, "max_steps": -1, "num_train_epochs": 2}  # 3 studies; a generation takes 4
    with pytest.raises(RecipeError, match="3 studies are fewer than the 4 of a generation"):
        run(grpo, "rl_step1", monkeypatch, **given)


@pytest.mark.parametrize(("studies", "of_a_generation"), [(7, 4), (8, 4), (5, 5), (600, 512)])
def test_every_study_is_in_every_epoch_and_no_generation_has_one_twice(studies: int, of_a_generation: int) -> None:
    sampler = RepeatSampler(range(studies), mini_repeat_count=3, batch_size=of_a_generation, repeat_count=2, seed=1)
    sampler.__class__ = WholeEpochs
    orders = []
    for epoch in (0, 1, 0):
        sampler.generator = torch.Generator().manual_seed(epoch)
        rows = list(sampler)
        assert len(rows) == len(sampler)
        assert set(rows) == set(range(studies))
        generation = of_a_generation * 3
        for start in range(0, len(rows), 2 * generation):
            once = rows[start : start + generation]
            assert once == rows[start + generation : start + 2 * generation]  # the same studies, for each of its steps
            assert len(set(once)) == of_a_generation
        orders.append(rows)
    assert orders[0] == orders[2] != orders[1]
