"""`trainer.train` with what every stage has around it."""

from __future__ import annotations

import signal
from pathlib import Path

import transformers
from transformers import (
    TrainerCallback,
)

from foundation.errors import read_json
from model.films import FilmForm, RecordForm
from training.checkpoints import RecordCheckpoints
from training.disk_space import RoomForCheckpoint
from training.finite import StopNotFinite
from training.gradients import EveryTensorLearns
from training.interrupts import SaveOnSignal
from training.processes import leave_together
from training.progress import add_progress, announce


def run_training(
    trainer: transformers.Trainer,
    stage: str,
    checkpoint: str | None,
    keep_optimizer_states: int | None = None,
    *callbacks: TrainerCallback,
) -> None:
    """`trainer.train`, with readable progress, from `checkpoint` if there is one; saves first when told to stop.

    Args:
        keep_optimizer_states: how many of the newest checkpoints training could resume from; None for all.
        callbacks: called after those that every stage has.

    Raises:
        SystemExit: with 128 + the signal's number, once the checkpoint is saved.
    """
    add_progress(trainer, stage)
    on_signal = SaveOnSignal()
    trainer.add_callback(on_signal)
    trainer.add_callback(StopNotFinite(trainer))
    trainer.add_callback(RoomForCheckpoint())
    trainer.add_callback(EveryTensorLearns())
    trainer.add_callback(RecordForm(form_of_stage(Path(trainer.args.output_dir))))
    # After all that write into a checkpoint: the manifest's sums are made in a thread of its own.
    trainer.add_callback(RecordCheckpoints(keep_optimizer_states))
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=checkpoint)
    step = trainer.state.global_step
    if on_signal.received and step < trainer.state.max_steps:
        name = signal.Signals(on_signal.received).name
        announce(f"{stage}: {name} received; checkpoint-{step} saved; the same command resumes from there")
        leave_together()
        raise SystemExit(128 + on_signal.received)


def form_of_stage(output_dir: Path) -> FilmForm | None:
    """The form of the films that a stage trains on, as its settings have it."""
    path = output_dir / "settings.json"
    films = read_json(path).get("films") if path.is_file() else None
    return FilmForm(**films) if films else None
