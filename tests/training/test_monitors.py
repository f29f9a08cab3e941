"""The monitors measure what they say, trip where they should, and stop a run with what shows why."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rl_runs import grpo_run
from safetensors.torch import load_file
from trl import GRPOTrainer

from foundation.errors import RecipeError
from recipes.grpo import build_composite
from rewards.chexprompt.judgement import Judgement
from rewards.chexprompt.settings import JudgeSettings
from rewards.composite import CompositeScores
from rewards.conditions import POSITIVE
from rewards.grpo_reward import Rollouts
from settings.arguments import MonitorArguments, RewardArguments
from training import disk_space, film_guard
from training.monitors import MONITORS, RolloutMonitors, build_monitors
from training.rollout_measures import copied_share, prior_copies, unique_share
from training.rollouts import best_and_worst, read_rollouts, write_rollouts

PRIOR = "Findings: The heart is enlarged. There is a small left pleural effusion. No pneumothorax is seen."


def rollouts(
    candidates: list[str],
    reference: str = "Findings: The lungs are clear.",
    prior: str | None = None,
    totals: list[float | None] | None = None,
    group: int = 4,
) -> Rollouts:
    """Rollouts of studies s0, s1, … with `group` candidates each."""
    n = len(candidates)
    totals = totals or [float(row) for row in range(n)]
    judgements = [
        None if total is None else Judgement((row, 0, 0, 0, 0, 0), (0,) * 6) for row, total in enumerate(totals)
    ]
    parts = {"bleu2": np.arange(n, dtype=np.float32), "judge": np.array([np.nan if t is None else t for t in totals])}
    return Rollouts(
        step=5,
        study_ids=[f"s{row // group}" for row in range(n)],
        sources=["phantom_test"] * n,
        references=[reference] * n,
        prior_reports=[prior] * n,
        image_paths=[["now.png", "before.png"] if prior else ["now.png"]] * n,
        candidates=candidates,
        lengths=[len(text.split()) for text in candidates],
        scores=CompositeScores(totals, parts, judgements, {}),
    )


def monitors(folder: Path, **settings):
    import contextlib

    reward = RewardArguments(reward_backend="offline", weight_bertscore=1.0)
    composite = build_composite(reward, JudgeSettings(), set(), contextlib.ExitStack())
    return build_monitors(MonitorArguments(**settings), reward, composite, folder)


def limit(name: str):
    return next(monitor for monitor in MONITORS if monitor.limit == name)


# ---- what is measured ------------------------------------------------------------------------------------------------


def test_unique_share_is_taken_within_each_study() -> None:
    assert unique_share(rollouts(["a", "a", "a", "a", "b", "c", "d", "e"])) == pytest.approx((1 / 4 + 1) / 2)
    assert unique_share(rollouts(["a", "b", "a", "b"], group=2)) == 1.0


def test_a_copy_of_the_prior_is_seen_whatever_its_case_and_spacing() -> None:
    assert copied_share(PRIOR.upper().replace(" ", "  "), PRIOR) == 1.0
    assert copied_share("Findings: The heart is normal in size. The lungs are clear.", PRIOR) < 0.3
    assert copied_share("Clear.", PRIOR) == 0.0
    seen = rollouts([PRIOR, "Findings: The lungs are clear and the heart is normal."], prior=PRIOR, group=2)
    assert prior_copies(seen) == [0]
    assert prior_copies(rollouts([PRIOR, PRIOR], prior=None, group=2)) == []


def test_negation_flips_and_heldout_f1_come_from_the_labels(tmp_path: Path) -> None:
    reference = "Findings: There is a left pleural effusion. There is no pneumothorax."
    right = monitors(tmp_path).observe(rollouts([reference] * 4, reference))
    flipped = "Findings: There is no pleural effusion. There is a left pneumothorax."
    wrong = monitors(tmp_path).observe(rollouts([flipped] * 4, reference))
    heldout = "monitor/heldout/label_f1[offline-rules]"
    assert right["monitor/negation_flips"] == 0.0
    assert wrong["monitor/negation_flips"] == 1.0
    assert right[heldout] == 1.0
    assert wrong[heldout] == 0.0


def test_another_metric_can_be_held_out_but_none_that_the_reward_optimises(tmp_path: Path) -> None:
    found = monitors(tmp_path, monitor_heldout="bleu2").observe(
        rollouts(["the lungs are clear"] * 4, "the lungs are clear")
    )
    assert found["monitor/heldout/bleu2"] == pytest.approx(1.0)
    with pytest.raises(RecipeError, match="bertscore, which the reward optimises"):
        monitors(tmp_path, monitor_heldout="bertscore")


# ---- when a limit trips ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key", "bound", "good", "bad"),
    [
        ("monitor_max_length", "completions/mean_length", 100, 99, 101),
        ("monitor_min_unique", "monitor/unique", 0.3, 0.4, 0.2),
        ("monitor_max_truncated", "completions/clipped_ratio", 0.5, 0.4, 0.6),
        ("monitor_max_prior_copies", "monitor/prior_copies", 0.5, 0.4, 0.6),
        ("monitor_max_zero_spread", "monitor/zero_spread", 0.5, 0.4, 0.6),
        ("monitor_min_entropy", "entropy", 0.1, 0.2, 0.05),
        ("monitor_max_kl", "kl", 1.0, 0.9, 1.1),
        ("monitor_max_negation_flips", "monitor/negation_flips", 0.2, 0.1, 0.3),
    ],
)
def test_a_limit_trips_when_passed_several_logs_in_a_row(
    name: str, key: str, bound: float, good: float, bad: float
) -> None:
    def trips(values: list[float | None]) -> float | None:
        return limit(name).trips([{key: value, "loss": 0.0} for value in values], bound, patience=3)

    assert trips([good, bad, bad, bad]) == bad
    assert trips([bad, bad, good, bad]) is None
    assert trips([bad, bad]) is None
    assert trips([bad, None, bad, None, bad]) == bad  # updates that reuse a generation have no new rollouts
    assert trips([bad] * 3 + [bound]) is None


def test_length_drift_is_against_the_mean_of_the_first_logs_in_either_direction() -> None:
    def trips(*lengths: float, patience: int = 1) -> float | None:
        log = [{"completions/mean_length": length} for length in lengths]
        return limit("monitor_max_length_drift").trips(log, 0.5, patience)

    assert trips(60, 100, 140, 140, 60) is None
    assert trips(60, 100, 140, 151) == pytest.approx(0.51)
    assert trips(60, 100, 140, 49) == pytest.approx(0.51)
    assert trips(10, 190, 100, 101) is None  # one odd log is not the start
    assert trips(100, 100, 300) is None  # nor is there anything to compare yet
    assert trips(*[100] * 5, *[200] * 5, patience=5) == pytest.approx(1.0)
    assert trips(*[100] * 5, *[200] * 4, patience=5) is None


def test_heldout_drop_trips_only_while_the_reward_holds() -> None:
    def trips(reward: float, heldout: float) -> float | None:
        pairs = [(0.2, 0.5), (0.3, 0.6), (0.4, 0.7), (reward, heldout)]
        # TRL's own reward is 0 at all times where each part is normalised
        log = [{"reward": 0.0, "monitor/reward": one, "monitor/heldout/label_f1": other} for one, other in pairs]
        return limit("monitor_max_heldout_drop").trips(log, 0.1, patience=1)

    assert trips(0.5, 0.45) == pytest.approx(0.15)  # the reward was hacked
    assert trips(0.25, 0.45) is None  # all fell: the reward does not disagree
    assert trips(0.5, 0.55) is None


def test_the_reward_and_its_spread_are_of_the_weighted_sum(tmp_path: Path) -> None:
    totals = [1.0, 1.0, 1.0, 1.0, 0.0, 0.5, None, 1.0, None, None, None, None]
    found = monitors(tmp_path).observe(rollouts(list("abcdefghijkl"), totals=totals))
    assert found["monitor/reward"] == pytest.approx(5.5 / 7)
    assert found["monitor/zero_spread"] == pytest.approx(2 / 3)  # of the first study, and of the one without any reward
    assert "monitor/reward" not in monitors(tmp_path).observe(rollouts(list("abcd"), totals=[None] * 4))


def test_every_limit_of_the_settings_has_its_monitor() -> None:
    limits = {
        name for name in MonitorArguments.__dataclass_fields__ if name.startswith(("monitor_max_", "monitor_min_"))
    }
    assert limits == {*(monitor.limit for monitor in MONITORS), film_guard.LIMIT}


@pytest.mark.parametrize(
    "settings",
    [
        {"monitor_patience": 0},
        {"rollouts_logged": -1},
        {"monitor_max_truncated": 50.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict) -> None:
    with pytest.raises(RecipeError, match=next(iter(settings))):
        MonitorArguments(**settings)


# ---- rollouts as Parquet ---------------------------------------------------------------------------------------------


def test_the_sample_holds_the_best_and_the_worst_of_each_study() -> None:
    seen = rollouts(list("abcdefgh"), totals=[0.5, None, 0.9, 0.1, None, None, None, 0.2])
    assert best_and_worst(seen, 16) == [3, 2, 7] or best_and_worst(seen, 16) == [2, 3, 7]
    assert len(best_and_worst(seen, 1)) == 1


def test_whole_groups_are_kept_so_that_advantages_can_be_checked(tmp_path: Path) -> None:
    totals = [0.5, None, 0.9, 0.1, 0.2, 0.3, 0.4, 0.7, 1.0, 1.0, 1.0, 1.0]
    watched = monitors(tmp_path, rollouts_logged=2)
    watched.observe(rollouts(list("abcdefghijkl"), totals=totals))
    watched._keep_sample(5)
    kept = pq.read_table(tmp_path / "rollouts" / "groups-000005.parquet").to_pylist()
    assert [row["reward"] for row in kept] == totals[:8]  # two studies, every rollout, the failed one too
    assert [row["study_id"] for row in kept] == ["s0"] * 4 + ["s1"] * 4
    assert len(read_rollouts(tmp_path)) == 2


def test_rollouts_survive_the_way_through_parquet(tmp_path: Path) -> None:
    seen = rollouts(["a b", "c", "d", "e"], prior=PRIOR, totals=[0.5, None, 0.25, 0.75])
    write_rollouts(tmp_path / "rollouts" / "step-000005.parquet", seen, [0, 1])
    first, second = read_rollouts(tmp_path).to_pylist()
    assert first["candidate"] == "a b"
    assert (first["image"], first["prior_image"]) == ("now.png", "before.png")
    assert first["prior_report"] == PRIOR
    assert (first["tokens"], first["reward"], first["part/bleu2"]) == (2, 0.5, 0.0)
    assert first["judge_significant"] == [0] * 6
    assert (second["reward"], second["part/judge"], second["judge_significant"]) == (None, None, None)
    assert [path.name for path in (tmp_path / "rollouts").iterdir()] == ["step-000005.parquet"]


# ---- in a run --------------------------------------------------------------------------------------------------------

EVERYTHING = {monitor.limit: 0 if monitor.limit.startswith("monitor_min_") else 1e9 for monitor in MONITORS}
EVERYTHING |= dict.fromkeys(("monitor_max_truncated", "monitor_max_prior_copies", "monitor_max_zero_spread"), 1)
EVERYTHING |= {"monitor_max_negation_flips": 1}
# TRL's own rollouts stand for vLLM's below, which gets every row; with shared prompts TRL's own are made a study at a time.
EVERYTHING |= {"share_prompts": "false"}


def sampled_by_vllm(monkeypatch: pytest.MonkeyPatch, logprobs: list[float]) -> None:
    """Let TRL take its own rollouts for vLLM's, each token's log-probability by generation; NaN: as the policy has it."""
    generate = GRPOTrainer._generate_single_turn
    left = iter(logprobs)

    def single_turn(trainer, *args, **kwargs):
        trainer.use_vllm = False
        completion_ids, _ = generate(trainer, *args, **kwargs)
        trainer.use_vllm = trainer.args.use_vllm = True
        trainer.vllm_generation = SimpleNamespace(sync_weights=lambda: None)
        logprob = next(left)
        return completion_ids, [[logprob] * len(ids) for ids in completion_ids]

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", single_turn)


def test_every_monitor_watches_what_a_run_logs(
    tiny_base: Path, phantom_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    sampled_by_vllm(monkeypatch, [math.nan] * 4)
    # an untrained model's reports affirm and deny nothing
    monkeypatch.setattr(RolloutMonitors, "_labels", lambda _, texts: np.full((len(texts), 14), POSITIVE))
    settings = {**EVERYTHING, "monitor_patience": 1, "updates_per_generation": 1}
    run = grpo_run(tmp_path / "rl_step2", tiny_base, phantom_data, "rl_step2", **settings)
    assert len(run.log) == 4
    for monitor in MONITORS:
        assert monitor.is_logged(run.log), monitor.limit
        assert monitor.before_update or monitor.trips(run.log, -math.inf, 1) is not None or "min" in monitor.limit
        assert "min" not in monitor.limit or monitor.trips(run.log, math.inf, 1) is not None
    assert "watches nothing" not in capsys.readouterr().out


def test_a_limit_on_what_a_run_does_not_log_is_said_once(
    tiny_base: Path, phantom_data: Path, tmp_path: Path, capsys
) -> None:
    """Step 1 has no KL; the limit on vLLM's difference, which is a default, is of no use without vLLM and not missed."""
    grpo_run(tmp_path / "rl_step1", tiny_base, phantom_data, monitor_max_kl=1.0)
    told = [line for line in capsys.readouterr().out.splitlines() if "watches nothing" in line]
    assert told == ["warning: monitor_max_kl is set, but kl is not in the log: it watches nothing"]


@pytest.mark.parametrize("wrong", [1, 2])
def test_rollouts_of_another_policy_are_not_learned_from(
    wrong: int, tiny_base: Path, phantom_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first generation nothing has been learned yet; in the second, what is saved is the policy before it."""
    out = tmp_path / "rl_step1"
    sampled_by_vllm(monkeypatch, [*[math.nan] * (wrong - 1), -50.0])
    with pytest.raises(RecipeError, match="difference of log-probabilities between vLLM and the trainer is") as told:
        grpo_run(out, tiny_base, phantom_data, save_strategy="no", share_prompts="false")
    stopped = json.loads((out / "stopped.json").read_text())
    assert (stopped["monitor"], stopped["step"]) == ("monitor_max_logp_difference", 2 * (wrong - 1))
    assert (out / "rollouts" / stopped["rollouts"]).is_file()
    checkpoints = sorted(path.name for path in out.glob("checkpoint-*"))
    if wrong == 1:
        assert "nothing was learned from them" in str(told.value)
        assert "starts over" in str(told.value)
        assert checkpoints == []
        return
    assert "checkpoint-2 is saved" in str(told.value)
    assert checkpoints == ["checkpoint-2"]
    state = json.loads((out / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["global_step"] == len(state["log_history"]) == 2
    monkeypatch.undo()
    sampled_by_vllm(monkeypatch, [math.nan])
    whole = grpo_run(tmp_path / "two", tiny_base, phantom_data, max_steps=2, share_prompts="false")
    saved = load_file(out / "checkpoint-2" / "model.safetensors")
    expected = load_file(tmp_path / "two" / "checkpoint-2" / "model.safetensors")
    assert all(torch.equal(saved[name], expected[name]) for name in expected)
    assert whole.trainer.state.global_step == 2


def test_a_checkpoint_that_a_monitor_asks_for_is_refused_where_the_disk_is_full(
    tiny_base: Path, phantom_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    out = tmp_path / "rl_step1"
    with pytest.raises(RecipeError, match="checkpoint-1 needs about"):
        grpo_run(out, tiny_base, phantom_data, monitor_max_truncated=0.0, monitor_patience=1, save_strategy="no")
    assert not (out / "checkpoint-1").exists()


def test_a_tripped_monitor_saves_says_which_and_shows_the_rollouts(
    tiny_base: Path, phantom_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rl_step1"
    run = grpo_run(out, tiny_base, phantom_data, monitor_max_truncated=0.0, monitor_patience=1, max_steps=4)
    assert run.trainer.state.global_step == 1
    assert (out / "checkpoint-1" / "trainer_state.json").is_file()
    stopped = json.loads((out / "stopped.json").read_text())
    assert (stopped["monitor"], stopped["step"]) == ("monitor_max_truncated", 1)
    assert stopped["value"] == run.log[0]["completions/clipped_ratio"] > 0
    assert "monitor_max_truncated 0" in stopped["message"]
    shown = pq.read_table(out / "rollouts" / stopped["rollouts"]).to_pylist()
    assert shown[0]["tokens"] == 16  # max_completion_length: a truncated one comes first
    assert {row["study_id"] for row in shown} <= set(run.seen[0].study_ids)
    monitor = next(callback for callback in run.trainer.callback_handler.callbacks if hasattr(callback, "tripped"))
    with pytest.raises(RecipeError, match="stopped at step 1: share of truncated completions"):
        monitor.raise_if_tripped()


class SilentJudge:
    """Has no answer for every third report."""

    name = "judge[silent]"

    async def judge(self, candidates: list[str], references: list[str], sources: list[str]) -> list[SimpleNamespace]:
        judged = SimpleNamespace(judgement=Judgement((0,) * 6, (0,) * 6), failure=None)
        failed = SimpleNamespace(judgement=None, failure="timeout")
        return [failed if row % 3 == 0 else judged for row in range(len(candidates))]


def test_a_judge_that_fails_too_often_stops_the_run_with_a_checkpoint(
    tiny_base: Path, phantom_data: Path, tmp_path: Path
) -> None:
    """6 of 16 rollouts a generation, judged by 32 or more: at the second generation, not the first."""
    out = tmp_path / "rl_step1"
    run = grpo_run(out, tiny_base, phantom_data, judge=SilentJudge(), judge_max_failure_rate=0.3, max_steps=4)
    assert run.trainer.state.global_step == 3
    assert (out / "checkpoint-3" / "trainer_state.json").is_file()
    monitor = next(callback for callback in run.trainer.callback_handler.callbacks if hasattr(callback, "tripped"))
    expected = (
        r"stopped at step 3: the judge failed for 38% of the last 32 .*30% \(timeout × 12\).*checkpoint-3 is saved"
    )
    with pytest.raises(RecipeError, match=expected):
        monitor.raise_if_tripped()
    assert json.loads((out / "stopped.json").read_text())["monitor"] == "judge_max_failure_rate"
