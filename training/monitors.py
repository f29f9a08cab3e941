"""Watching RL: signs that a run goes wrong, logged as curves, each with a limit that can stop it.

What the reward sees (`RolloutMonitors.observe`) and what TRL logs come together in one entry of the log. A monitor is one
row of `MONITORS`: a key of the log, a limit of the YAML, and which rollouts show the trouble. A limit passed at
`monitor_patience` logs in a row saves a checkpoint, writes those rollouts as Parquet, and stops the run with a message.
That vLLM samples from another policy is seen, and the run stopped, before the policy learns from those rollouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOTrainer

from foundation.errors import RecipeError
from foundation.files import write_json
from rewards.composite import CompositeReward
from rewards.conditions import NEGATIVE, POSITIVE, Labeler
from rewards.engine import EngineSettings
from rewards.grpo_reward import GrpoReward, Rollouts
from rewards.label_f1 import label_f1
from rewards.metric import Metric
from rewards.registry import load_labeler, load_metrics
from settings.arguments import MonitorArguments, RewardArguments
from training.disk_space import require_room_for_checkpoint
from training.processes import leave_together, over_processes
from training.progress import announce
from training.result import finite
from training.rollout_measures import negation_flips, prior_copies, unique_share, zero_spread
from training.rollouts import best_and_worst, groups, whole_groups, write_rollouts

HELDOUT = "monitor/heldout/"  # prefix of the held-out measure's key, before its full name
SHOWN = 32  # rollouts written when a monitor trips
START = 3  # our choice: at least so many logs make the start that later ones are compared with

Log = Mapping[str, Any]


# ---- what the rollouts say -------------------------------------------------------------------------------------------


# ---- the monitors ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Monitor:
    """One sign of trouble.

    Attributes:
        limit: its key in the YAML; `monitor_max_…` or `monitor_min_…` says on which side trouble lies.
        what: the quantity, for the message.
        key: what it watches, in the log. Updates that reuse a generation have no new rollouts, hence no value of what is
            measured on rollouts.
        shows: orders row numbers by how well they show the trouble, best first.
        since_start: its values in comparison with the start, given the log and how many of its first values make the
            start; without it, those of `key`.
        before_update: whether each generation is checked, before an update uses it, and not the log.
    """

    limit: str
    what: str
    key: str
    shows: Callable[[Rollouts], list[int]] = lambda rollouts: best_and_worst(rollouts, SHOWN)
    since_start: Callable[[Sequence[Log], int], list[float]] | None = None
    before_update: bool = False

    def trips(self, log: Sequence[Log], limit: float, patience: int) -> float | None:
        """The last value where the last `patience` values are all beyond `limit`, else None."""
        values = self.since_start(log, max(patience, START)) if self.since_start else _values(log, self.key)
        last = values[-patience:]
        return last[-1] if len(last) == patience and all(self.beyond(value, limit) for value in last) else None

    def beyond(self, value: float, limit: float) -> bool:
        return value < limit if self.limit.startswith("monitor_min_") else value > limit

    def is_logged(self, log: Sequence[Log]) -> bool:
        keys = {key for entry in log for key, value in entry.items() if value is not None}
        return self.key in keys or (self.key == HELDOUT and any(key.startswith(HELDOUT) for key in keys))


def _values(log: Sequence[Log], key: str) -> list[float]:
    return [float(entry[key]) for entry in log if entry.get(key) is not None]


def _length_drift(log: Sequence[Log], start: int) -> list[float]:
    """|length / mean length at the start − 1|, after the start."""
    lengths = _values(log, "completions/mean_length")
    first = max(float(np.mean(lengths[:start])), 1.0) if lengths else 1.0
    return [abs(length / first - 1) for length in lengths[start:]]


def _heldout_drop(log: Sequence[Log], start: int) -> list[float]:
    """How far the held-out measure is below its mean at the start, after it; 0 where the reward is below its own too."""
    key = next((key for entry in log for key in entry if key.startswith(HELDOUT)), None)
    pairs = [
        (entry["monitor/reward"], entry[key])
        for entry in log
        if entry.get(key) is not None and entry.get("monitor/reward") is not None
    ]
    if len(pairs) <= start:
        return []
    reward, heldout = np.mean(pairs[:start], axis=0)
    return [0.0 if now < reward else float(heldout - measured) for now, measured in pairs[start:]]


def _longest(rollouts: Rollouts) -> list[int]:
    return sorted(range(len(rollouts)), key=lambda row: -rollouts.lengths[row])


def _most_alike(rollouts: Rollouts) -> list[int]:
    by_variety = sorted(groups(rollouts), key=lambda group: len({rollouts.candidates[row] for row in group}))
    return [row for group in by_variety for row in group]


MONITORS = (
    Monitor("monitor_max_length", "mean length in tokens", "completions/mean_length", _longest),
    Monitor(
        "monitor_max_length_drift",
        "change of the mean length since the start",
        "completions/mean_length",
        _longest,
        _length_drift,
    ),
    Monitor(
        "monitor_min_unique",
        "share of different reports among a study's rollouts",
        "monitor/unique",
        _most_alike,
    ),
    Monitor("monitor_max_truncated", "share of truncated completions", "completions/clipped_ratio", _longest),
    Monitor(
        "monitor_max_prior_copies",
        "share of rollouts that copy the prior report",
        "monitor/prior_copies",
        prior_copies,
    ),
    Monitor(
        "monitor_max_zero_spread",
        "share of groups with equal rewards",
        "monitor/zero_spread",
        _most_alike,
    ),
    Monitor("monitor_min_entropy", "entropy in nats a token", "entropy", _most_alike),
    Monitor("monitor_max_kl", "KL to the reference policy in nats a token", "kl"),
    Monitor(
        "monitor_max_negation_flips",
        "share of findings affirmed against a denying reference or inversely",
        "monitor/negation_flips",
    ),
    Monitor(
        "monitor_max_heldout_drop",
        "fall of the held-out measure while the reward held",
        HELDOUT,
        since_start=_heldout_drop,
    ),
    Monitor(
        "monitor_max_logp_difference",
        "difference of log-probabilities between vLLM and the trainer",
        "sampling/sampling_logp_difference/mean",
        before_update=True,
    ),
)


class RolloutMonitors(TrainerCallback):
    """Observer of `GrpoReward` and trainer callback in one: measures, keeps a sample of rollouts, and stops the run.

    Attributes:
        tripped: the message once a limit was passed, else None. All processes come to the same answer, because TRL's log
            entries are the same on all.
    """

    def __init__(
        self, settings: MonitorArguments, output_dir: Path, labeler: Labeler, heldout: Metric | None = None
    ) -> None:
        """`heldout` is the metric watched in place of the label F1."""
        self.settings, self.output_dir = settings, output_dir
        self.labeler, self.heldout = labeler, heldout
        self.tripped: str | None = None
        self.latest: Rollouts | None = None
        self.kept: Rollouts | None = None
        self.flips: np.ndarray | None = None
        self.judged: GrpoReward | None = None
        self.told = False  # of limits that watch nothing

    def watch_judge(self, reward: GrpoReward) -> None:
        """Stop the run where too many of `reward`'s judge calls fail, over all processes (`judge_max_failure_rate`)."""
        self.judged = reward if reward.composite.can_fail else None

    def observe(self, rollouts: Rollouts) -> dict[str, float]:
        """What the rollouts say, for the log: shares in [0, 1] and the held-out measure."""
        candidates, references = self._labels(rollouts.candidates), self._labels(rollouts.references)
        flips = negation_flips(candidates, references)
        decided = np.isin(candidates, (POSITIVE, NEGATIVE)) & np.isin(references, (POSITIVE, NEGATIVE))
        self.latest, self.flips = rollouts, flips
        if self.heldout is None:
            stand_in = f"[{self.labeler.backend}]" if self.labeler.backend.startswith("offline") else ""
            heldout = {f"{HELDOUT}label_f1{stand_in}": label_f1(candidates, references)["micro_14"]}
        else:
            scores = self.heldout(rollouts.candidates, rollouts.references)
            heldout = {f"{HELDOUT}{self.heldout.name}": float(scores.mean())}
        found = {"monitor/unique": unique_share(rollouts), "monitor/zero_spread": zero_spread(rollouts), **heldout}
        if judged := [total for total in rollouts.scores.total if total is not None]:
            found["monitor/reward"] = float(np.mean(judged))
        if decided.any():
            found["monitor/negation_flips"] = float(flips.sum() / decided.sum())
        if longitudinal := sum(prior is not None for prior in rollouts.prior_reports):
            found["monitor/prior_copies"] = len(prior_copies(rollouts)) / longitudinal
        return found

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            (self.output_dir / "stopped.json").unlink(missing_ok=True)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        log = [entry for entry in state.log_history if "loss" in entry]
        if not log or log[-1].get("step") != state.global_step:  # the closing summary
            return control
        if state.is_world_process_zero:
            self._keep_sample(state.global_step)
        if len(log) >= max(self.settings.monitor_patience, START):
            self._tell_unseen(args, log)
        for monitor, limit in self._limits():
            value = None if monitor.before_update else monitor.trips(log, limit, self.settings.monitor_patience)
            if value is not None:
                self._trip(monitor, value, limit, state)
                control.should_save = control.should_training_stop = True
                break
        return control

    def check_generation(self, trainer: GRPOTrainer) -> None:
        """Stop on rollouts that are not the policy's, before an update uses them; all processes must call this.

        Raises:
            RecipeError: as `raise_if_tripped`; the checkpoint that it names is saved.
        """
        state = trainer.state
        for monitor, limit in self._limits():
            values = trainer._metrics["train"].get(monitor.key)
            if monitor.before_update and values and monitor.beyond(values[-1], limit):
                self._trip(monitor, values[-1], limit, state)
                checkpoint = self.output_dir / f"checkpoint-{state.global_step}"
                (saved,) = over_processes([checkpoint.is_dir()], torch.distributed.ReduceOp.MAX)
                if state.global_step and not saved:
                    require_room_for_checkpoint(trainer.model, trainer.args, state.global_step)
                    trainer._save_checkpoint(trainer.model, trial=None)
                self.raise_if_tripped()

    def _limits(self) -> list[tuple[Monitor, float]]:
        limits = [(monitor, getattr(self.settings, monitor.limit)) for monitor in MONITORS]
        return [(monitor, limit) for monitor, limit in limits if limit is not None]

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._tell_unseen(args, [entry for entry in state.log_history if "loss" in entry])

    def _tell_unseen(self, args: TrainingArguments, log: Sequence[Log]) -> None:
        """Say once which limits watch nothing, because what they limit is not logged in this run."""
        if self.told or not log:
            return
        self.told = True
        for monitor, _ in self._limits():
            needed = args.use_vllm or not monitor.before_update
            if needed and not monitor.is_logged(log):
                announce(f"warning: {monitor.limit} is set, but {monitor.key} is not in the log: it watches nothing")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if self.judged is None:
            return control
        recent = self.judged.recent
        counts = over_processes([sum(recent), len(recent)], torch.distributed.ReduceOp.SUM)
        if reason := self.judged.too_many_failures(*counts):
            rate, limit = counts[0] / counts[1], self.judged.judge_max_failure_rate
            self._stopped(state, "judge_max_failure_rate", rate, limit, reason)
            control.should_save = control.should_training_stop = True
        return control

    def stop(self, state: TrainerState, key: str, value: float, limit: float, what: str) -> None:
        """Note that `what`, which is measured elsewhere, is beyond the limit `key`; who calls it ends the training."""
        mend = f"mend the cause, or set {key} to null or another limit"
        self._stopped(state, key, value, limit, f"{what} is {value:.4g}, beyond {key} {limit:g}; {mend}")

    def _stopped(self, state: TrainerState, key: str, value: float, limit: float, reason: str) -> None:
        saved = f"checkpoint-{state.global_step} is saved, and the same command resumes from there"
        self.tripped = f"stopped at step {state.global_step}: {reason}; {saved}"
        self._write_stopped(state, key, value, limit)

    def raise_if_tripped(self) -> None:
        """Raise `RecipeError` with the message of the monitor that stopped the run, if one did; one process tells it."""
        if not self.tripped:
            return
        leave_together()
        if not PartialState().is_main_process:
            raise SystemExit(2)
        raise RecipeError(self.tripped)

    def _labels(self, texts: Sequence[str]) -> np.ndarray:
        """Class labels int [n, 14]; each different text is labelled once."""
        different = list(dict.fromkeys(texts))
        labels = dict(zip(different, self.labeler.label(different), strict=True))
        return np.array([labels[text] for text in texts])

    def _keep_sample(self, step: int) -> None:
        if self.settings.rollouts_logged and self.latest is not None and self.latest is not self.kept:
            self.kept = self.latest
            folder, latest = self.output_dir / "rollouts", self.latest
            write_rollouts(
                folder / f"step-{step:06d}.parquet", latest, best_and_worst(latest, self.settings.rollouts_logged)
            )
            write_rollouts(folder / f"groups-{step:06d}.parquet", latest, whole_groups(latest))

    def _trip(self, monitor: Monitor, value: float, limit: float, state: TrainerState) -> None:
        name = monitor.limit.removeprefix("monitor_max_").removeprefix("monitor_min_")
        side = "below" if monitor.limit.startswith("monitor_min_") else "above"
        shown = self.output_dir / "rollouts" / f"tripped-{name}-{state.global_step:06d}.parquet"
        kept = f"checkpoint-{state.global_step} is saved" if state.global_step else "nothing was learned from them"
        self.tripped = (
            f"stopped at step {state.global_step}: {monitor.what} is {value:.4g}, {side} {monitor.limit} {limit:g}; "
            f"see {shown}; {kept}: mend the cause, or set {monitor.limit} to null or another limit, and the same command "
            f"{'resumes from there' if state.global_step else 'starts over'}"
        )
        if state.is_world_process_zero and self.latest is not None:
            rows = self._flipped() if name == "negation_flips" else monitor.shows(self.latest)
            write_rollouts(shown, self.latest, rows[:SHOWN])
        self._write_stopped(state, monitor.limit, value, limit, shown.name)

    def _write_stopped(
        self, state: TrainerState, key: str, value: float, limit: float, rollouts: str | None = None
    ) -> None:
        """`stopped.json`: the YAML key of the limit, the value that passed it, and the file of rollouts that show it."""
        stopped = {"monitor": key, "step": state.global_step, "value": value, "limit": limit, "rollouts": rollouts}
        if state.is_world_process_zero:
            settings = {"message": self.tripped, "settings": asdict(self.settings)}
            write_json(self.output_dir / "stopped.json", finite(stopped | settings))

    def _flipped(self) -> list[int]:
        counts = self.flips.sum(axis=1)
        return [int(row) for row in np.argsort(-counts, kind="stable") if counts[row]]


def build_monitors(
    settings: MonitorArguments, reward: RewardArguments, composite: CompositeReward, output_dir: Path
) -> RolloutMonitors:
    """The monitors of a stage, on the labeler that SembScore loaded anyway (or the same backend's own).

    Raises:
        RecipeError: the held-out metric is part of the reward.
        MetricError: there is no such metric on this backend.
    """
    heldout, weights_dir = None, Path(reward.weights_dir)
    cached = EngineSettings(cache_dir=reward.score_cache)
    if settings.monitor_heldout != "label_f1":
        if reward.metric_weights.get(settings.monitor_heldout):
            raise RecipeError(
                f"monitor_heldout is {settings.monitor_heldout}, which the reward optimises; name another, e.g. label_f1"
            )
        loaded = load_metrics([settings.monitor_heldout], reward.reward_backend, weights_dir, cached)
        heldout = loaded[settings.monitor_heldout]
    semantic = composite.metrics.get("sembscore")
    labeler = semantic.labeler if semantic else load_labeler(reward.reward_backend, weights_dir, cached)
    return RolloutMonitors(settings, output_dir, labeler, heldout)
