"""A signal ends a stage after its step, with a checkpoint."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import Any

import torch
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from foundation.signals import STOPPING, handled
from training.processes import over_processes


class SaveOnSignal(TrainerCallback):
    """Ctrl-C, SIGTERM, SIGHUP or SIGUSR1 (Slurm's warning): the step in progress is finished, a checkpoint saved, training
    stops. A second one ends the process at once.

    Attributes:
        received: the signal that stopped training, or None. A signal to one process stops all.
    """

    SIGNALS = (*STOPPING, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received: int | None = None
        self.handlers = contextlib.ExitStack()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            self.handlers.enter_context(handled(self._receive, self.SIGNALS))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        (received,) = over_processes([self.received or 0], torch.distributed.ReduceOp.MAX)
        self.received = received or None
        if self.received:
            control.should_save = control.should_training_stop = True
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.handlers.close()

    def _receive(self, number: int) -> None:
        if self.received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = number
