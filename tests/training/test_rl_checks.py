"""GRPO is what the recipe says: right references, right reference policy, clipping that acts, masks, counts, images.

Two short runs of the demo's recipe on the untrained tiny model, shared by all tests: step 1, and step 2 from where it
ended, with a judge that fails for some rollouts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from counting_judge import Answer
from PIL import Image
from rl_runs import Run, grpo_run
from safetensors.torch import load_file

from data_prep.study import read_studies
from model.prompts import is_longitudinal, study_report
from rewards.chexprompt.judgement import Judgement
from rewards.registry import load_metrics
from training.rollouts import read_rollouts
from training.trainers import RolloutTrainer, keep_rows_out_of_logs

WEIGHTS = {"bertscore": 0.370, "sembscore": 0.253, "radgraph": 0.377}  # paper, Optimization, step 1


class ForgetfulJudge:
    """Counts a report's words as errors; has no answer for every third report of a batch."""

    name = "chexprompt[words]"

    async def judge(self, candidates: Sequence[str], references: Sequence[str], sources: Sequence[str]) -> list[Answer]:
        return [
            Answer(None, "timeout")
            if row % 3 == 0
            else Answer(Judgement((len(text.split()), 0, 0, 0, 0, 0), (0,) * 6), None)
            for row, text in enumerate(candidates)
        ]


class Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture(scope="session")
def warnings_of_step_2() -> Messages:
    return Messages()


@pytest.fixture(scope="session")
def step_2(
    step_1: Run, phantom_data: Path, tmp_path_factory: pytest.TempPathFactory, warnings_of_step_2: Messages
) -> Run:
    start = Path(step_1.trainer.args.output_dir) / "checkpoint-4"
    logger = logging.getLogger("trl.trainer.grpo_trainer")
    logger.addHandler(warnings_of_step_2)
    run = grpo_run(
        tmp_path_factory.mktemp("rl") / "rl_step2",
        start,
        phantom_data,
        "rl_step2",
        ForgetfulJudge(),
        max_steps=2,
        judge_max_failure_rate=1.0,
        mask_truncated_completions=False,  # so that all rollouts have a gradient, and the policy moves
    )
    logger.removeHandler(warnings_of_step_2)
    return run


@pytest.fixture(scope="session")
def studies(phantom_data: Path) -> dict[str, dict]:
    return {study["study_id"]: study for study in read_studies(phantom_data / "phantom_prairie", "train").to_pylist()}


# ---- rewards ---------------------------------------------------------------------------------------------------------


def test_each_completion_is_scored_against_its_own_study(step_1: Run, studies: dict[str, dict]) -> None:
    metrics = load_metrics(list(WEIGHTS), "offline")
    decode = step_1.trainer.processing_class.batch_decode
    for seen, generated in zip(step_1.seen, step_1.generated, strict=True):
        assert seen.candidates == decode(generated, skip_special_tokens=True)
        references = [study_report(studies[study_id]) for study_id in seen.study_ids]
        assert seen.references == references
        expected = sum(weight * metrics[name](seen.candidates, references) for name, weight in WEIGHTS.items())
        np.testing.assert_allclose(seen.scores.total, expected, atol=1e-6)
    assert len({study_id for seen in step_1.seen for study_id in seen.study_ids}) > 4


def test_advantages_compare_rollouts_of_one_study(step_1: Run) -> None:
    for seen, batch in zip(step_1.seen, step_1.batches, strict=True):
        rewards = torch.tensor(seen.scores.total).view(-1, 4)
        assert [len(set(seen.study_ids[row : row + 4])) for row in range(0, len(seen), 4)] == [1] * len(rewards)
        expected = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
        torch.testing.assert_close(batch["advantages"], expected.view(-1).float(), atol=1e-3, rtol=1e-3)


def test_a_rollout_without_judgement_has_no_advantage_and_does_not_count_in_its_group(step_2: Run) -> None:
    (seen,), (batch,) = step_2.seen, step_2.batches
    failed = torch.tensor([total is None for total in seen.scores.total])
    assert failed.tolist() == [row % 3 == 0 for row in range(16)]
    assert (batch["advantages"][failed] == 0).all()
    assert (batch["advantages"][~failed] != 0).any()
    judged = batch["advantages"].masked_fill(failed, torch.nan).view(-1, 4)
    torch.testing.assert_close(judged.nanmean(1), torch.zeros(4), atol=1e-4, rtol=0)


def test_no_report_text_is_logged_for_a_rollout_without_reward(step_2: Run, warnings_of_step_2: Messages) -> None:
    assert [total for total in step_2.seen[0].scores.total if total is None] == [None] * 6
    assert not any("returned None" in text for text in warnings_of_step_2.texts)
    assert keep_rows_out_of_logs().count > 0


# ---- policy, reference policy, clipping ------------------------------------------------------------------------------


def test_step_1_has_no_kl_term_and_no_reference_model(step_1: Run) -> None:
    assert step_1.trainer.beta == 0
    assert step_1.trainer.ref_model is None
    assert all("ref_per_token_logps" not in batch for batch in step_1.batches)
    assert all("kl" not in entry for entry in step_1.log)


def test_the_reference_policy_of_step_2_is_the_step_1_policy(step_1: Run, step_2: Run) -> None:
    assert step_2.trainer.beta == 0.03
    saved = load_file(Path(step_1.trainer.args.output_dir) / "checkpoint-4" / "model.safetensors")
    reference = step_2.trainer.ref_model.state_dict()
    assert saved
    for name, tensor in saved.items():
        assert torch.equal(reference[name], tensor), name
    first, second = step_2.log
    assert first["kl"] == pytest.approx(0, abs=1e-9)
    assert second["kl"] > 1e-4


def test_step_1_has_moved_away_from_where_it_started(step_1: Run, tiny_base: Path) -> None:
    """Otherwise the test of the reference policy would pass with the base model as the reference."""
    before = load_file(tiny_base / "model.safetensors")
    after = load_file(Path(step_1.trainer.args.output_dir) / "checkpoint-4" / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_clipping_acts_where_a_generation_is_used_again_and_is_higher_above(
    tiny_base: Path, phantom_data: Path, tmp_path: Path
) -> None:
    """Of the tokens that the update before made likelier: by more than the higher threshold; of none beyond a huge one."""
    # the two halves of a generation do not undo each other's update at this rate
    settings = {"learning_rate": 3e-3, "epsilon": 0.2}
    run = grpo_run(tmp_path / "clipped", tiny_base, phantom_data, **settings, epsilon_high=0.28)
    assert (run.trainer.epsilon_low, run.trainer.epsilon_high) == (0.2, 0.28)
    high = [entry["clip_ratio/high_mean"] for entry in run.log]
    assert high[0] == high[2] == 0  # the policy that generated
    assert high[1] > 0  # the same rollouts after one update
    assert high[3] > 0
    free = grpo_run(tmp_path / "free", tiny_base, phantom_data, **settings, epsilon_high=1e6, max_steps=2)
    assert free.log[1]["clip_ratio/high_mean"] == 0
    assert free.log[1]["clip_ratio/low_mean"] == run.log[1]["clip_ratio/low_mean"] > 0  # the same tokens


# ---- batches, masks, images ------------------------------------------------------------------------------------------


def test_a_step_has_as_many_completions_as_global_batch_says(step_1: Run) -> None:
    """2 prompts × 4 rollouts an update; 2 updates a generation; 4 updates."""
    args = step_1.trainer.args
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 8
    assert [len(seen) for seen in step_1.seen] == [16, 16]
    assert step_1.trainer.state.global_step == 4


def test_truncated_completions_are_masked_and_others_are_not(step_1: Run) -> None:
    assert step_1.trainer.mask_truncated_completions
    tokenizer = step_1.trainer.processing_class.tokenizer
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}  # Qwen ends with either
    truncated, ended = 0, 0
    for generated, batch in zip(step_1.generated, step_1.batches, strict=True):
        for ids, mask in zip(generated, batch["completion_mask"], strict=True):
            if ids[-1] in ends:
                assert mask.sum() == len(ids)
                ended += 1
            else:
                assert len(ids) == 16
                assert mask.sum() == 0
                truncated += 1
    assert truncated > 0
    assert ended > 0


def test_a_longitudinal_prompt_carries_both_images_in_order(
    step_1: Run, studies: dict[str, dict], phantom_data: Path
) -> None:
    processor = step_1.trainer.processing_class
    longitudinal = 0
    for seen, prompts in zip(step_1.seen, step_1.prompts, strict=True):
        for study_id, (ids, images) in zip(seen.study_ids, prompts, strict=True):
            study = studies[study_id]
            paths = [study["image"]]
            if is_longitudinal(study, True):
                paths.append(study["prior_image"])
                longitudinal += 1
            shown = [np.asarray(image.convert("L")) for image in images]
            stored = [np.asarray(Image.open(phantom_data / "phantom_prairie" / path).convert("L")) for path in paths]
            assert len(shown) == len(stored)
            assert all(np.array_equal(one, other) for one, other in zip(shown, stored, strict=True))
            marked = np.array(ids) == processor.image_token_id
            assert int((np.diff(marked.astype(int)) == 1).sum()) == len(paths)  # one run of image tokens an image
            text = processor.tokenizer.decode(ids)
            assert ("Prior image: <|vision_start|>" in text) == (len(paths) == 2)
    assert longitudinal > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"per_device_train_batch_size": 2},  # 8 micro-steps a generation
        {"per_device_train_batch_size": 4, "num_iterations": 2, "dataloader_num_workers": 2, "max_steps": 5},
    ],
    ids=["micro-steps", "iterations-and-workers"],
)
def test_images_are_opened_once_a_generation_and_the_losses_are_those_of_trls_loader(
    settings: dict, tiny_base: Path, phantom_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    decode = datasets.Image.decode_example

    def counted(self, value, *args, **kwargs):
        opened.append(value["path"])
        return decode(self, value, *args, **kwargs)

    monkeypatch.setattr(datasets.Image, "decode_example", counted)
    ours = grpo_run(tmp_path / "ours", tiny_base, phantom_data, **settings)
    seen = [{name: paths for name, paths in zip(of.study_ids, of.image_paths, strict=True)} for of in ours.seen]
    assert len(seen) == 2
    assert len(opened) == sum(len(paths) for studies in seen for paths in studies.values()) <= 2 * 4 * 2
    opened.clear()
    for method in ("_get_dataloader", "_generate_and_score_completions"):
        monkeypatch.delattr(RolloutTrainer, method)
    theirs = grpo_run(tmp_path / "theirs", tiny_base, phantom_data, **settings)
    assert ours.losses == theirs.losses
    assert [of.candidates for of in ours.seen] == [of.candidates for of in theirs.seen]
    if not settings.get("dataloader_num_workers"):  # of other processes, which are not counted here
        assert len(opened) >= 2 * 8 * 16  # generations × micro-steps × rollouts


def test_both_images_of_a_longitudinal_study_reach_the_loss(step_1: Run) -> None:
    for seen, batch in zip(step_1.seen, step_1.batches, strict=True):
        images = sum(len(paths) for paths in seen.image_paths)
        assert len(batch["image_grid_thw"]) == images
        assert sum(map(len, batch["pixel_values"])) == int(batch["image_grid_thw"].prod(1).sum())
    assert any(len(paths) == 2 for seen in step_1.seen for paths in seen.image_paths)


# ---- what is kept of the rollouts ------------------------------------------------------------------------------------


def test_sampled_rollouts_are_kept_with_parts_and_judge_counts(
    step_1: Run, step_2: Run, studies: dict[str, dict]
) -> None:
    for run, part in ((step_1, "part/bertscore[offline-hash]"), (step_2, "part/chexprompt[words]")):
        table = read_rollouts(Path(run.trainer.args.output_dir))
        rows = table.to_pylist()
        assert 0 < len(rows) <= 16 * len(run.log)
        assert part in table.column_names
        for row in rows:
            study = studies[row["study_id"]]
            assert row["reference"] == study_report(study)
            assert row["image"].endswith(study["image"])
            assert row["prior_report"] == (study["prior_report"] if is_longitudinal(study, True) else None)
    judged = [row for row in rows if row["reward"] is not None]
    assert judged
    assert all(row["judge_significant"][0] == len(row["candidate"].split()) for row in judged)
    assert all(row["judge_significant"] is None for row in rows if row["reward"] is None)


def test_logged_kl_and_entropy_are_means_over_tokens_however_a_batch_is_split(tiny_base, phantom_data, tmp_path):
    """The same rollouts in one forward pass of eight, or in two of four with reports of other lengths."""
    logs = {}
    for rows in (8, 4):
        settings = {
            "per_device_train_batch_size": rows,
            "max_steps": 2,
            "save_strategy": "no",
            "share_prompts": "false",
        }
        run = grpo_run(tmp_path / str(rows), tiny_base, phantom_data, "rl_step2", **settings)
        lengths = {len(ids) for ids in run.generated[0]}
        logs[rows] = run.log[1]  # the second update of the generation: the policy has moved
    assert len(lengths) > 1
    assert logs[8]["kl"] > 0
    for name in ("kl", "entropy", "clip_ratio/region_mean", "loss"):
        assert logs[4][name] == pytest.approx(logs[8][name], rel=1e-3, abs=1e-7), name
