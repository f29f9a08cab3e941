"""Where the time of an RL run goes: seconds of each part of an update, in its log and in the stage's result.

Parts do not overlap: what a part contains of another (vLLM's weights are sent while it is asked to generate) counts there.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from transformers import TrainerCallback

PREFIX = "seconds/"  # of the log's keys
READ = "read"  # films processed, prompts tokenised
WEIGHTS = "weights"  # sent to vLLM, a LoRA adapter's merge included
GENERATE = "generate"
SCORE = "score"  # rewards, the judge's calls included
LOG_PROBABILITIES = "log-probabilities"  # of the old and the reference policy
UPDATE = "update"  # forward, backward, optimiser
PARTS = (READ, WEIGHTS, GENERATE, SCORE, LOG_PROBABILITIES, UPDATE)


class Times:
    """A clock of parts that may lie in each other.

    Attributes:
        total: seconds of each part since training began in this process.
    """

    def __init__(self) -> None:
        self.total: Counter[str] = Counter()
        self._logged: Counter[str] = Counter()
        self._logged_step = 0
        self._open: list[str] = []
        self._since = 0.0

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens within as `name`."""
        self._close_interval()
        self._open.append(name)
        try:
            yield
        finally:
            self._close_interval()
            self._open.pop()

    def since_last_log(self, step: int) -> dict[str, float]:
        """Seconds an update of each part that took any, since this was last asked, at `step` updates done."""
        updates = max(step - self._logged_step, 1)
        spent = {name: (self.total[name] - self._logged[name]) / updates for name in PARTS}
        self._logged, self._logged_step = self.total.copy(), step
        return {PREFIX + name: seconds for name, seconds in spent.items() if seconds > 0}

    def _close_interval(self) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # what was started counts where it was started
        now = time.perf_counter()
        if self._open:
            self.total[self._open[-1]] += now - self._since
        self._since = now


class _OptimizerTime(TrainerCallback):
    """The optimiser's step, which the trainer makes between two of its methods."""

    def __init__(self, times: Times) -> None:
        self.times = times
        self.step = contextlib.ExitStack()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.step.enter_context(self.times.part(UPDATE))

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.step.close()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.times.since_last_log(state.global_step)


class TimedParts:
    """Mixin for GRPOTrainer.

    Attributes:
        times: the clock.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.times = Times()
        super().__init__(*args, **kwargs)
        self.add_callback(_OptimizerTime(self.times))
        if self.use_vllm:
            sync = self.vllm_generation.sync_weights

            def timed_sync(*args: Any, **kwargs: Any) -> None:
                with self.times.part(WEIGHTS):
                    sync(*args, **kwargs)

            self.vllm_generation.sync_weights = timed_sync

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self.times.part(UPDATE):
            return super().training_step(*args, **kwargs)

    def _tokenize_prompts(self, *args: Any, **kwargs: Any) -> Any:
        with self.times.part(READ):
            return super()._tokenize_prompts(*args, **kwargs)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        with self.times.part(GENERATE):
            return super()._generate_single_turn(*args, **kwargs)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self.times.part(SCORE):
            return super()._calculate_rewards(*args, **kwargs)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        with self.times.part(UPDATE if torch.is_grad_enabled() else LOG_PROBABILITIES):
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs |= self.times.since_last_log(self.state.global_step)
        super().log(logs, *args, **kwargs)
