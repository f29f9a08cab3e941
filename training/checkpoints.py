"""Checkpoints of a stage: which one to resume from, their manifests, and what older ones keep."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from foundation.errors import RecipeError, read_json
from foundation.files import write_json
from foundation.provenance import write_run
from model.checkpoint_files import (
    MANIFEST,
    OPTIMIZER_STATE,
    OTHER_STATE,
    checkpoint_damage,
    forget_in_manifest,
    saved_checkpoints,
    write_manifest,
)
from training.finished import OF_THE_LENGTH, OF_THE_MACHINE, changed_settings
from training.processes import in_first_process


def start_or_resume(output_dir: Path, settings: dict[str, Any]) -> str | None:
    """The checkpoint to resume from, or None for a fresh start; says which, and notes the settings of the run.

    Raises:
        RecipeError: what is in `output_dir` was begun with other settings, such as another model or other data.
    """
    return in_first_process(lambda: _start_or_resume(output_dir, settings))


def _start_or_resume(output_dir: Path, settings: dict[str, Any]) -> str | None:
    path = output_dir / "settings.json"
    if saved_checkpoints(output_dir):
        before = read_json(path) if path.is_file() else None
        if before is None:
            raise RecipeError(
                f"{output_dir} holds checkpoints and no settings.json that says how they were made; "
                "FORCE=1 starts it again, RUN=name starts another run"
            )
        if changed := changed_settings(before, settings, OF_THE_MACHINE + OF_THE_LENGTH):
            raise RecipeError(
                f"{output_dir} holds checkpoints of a run with other settings ({changed}); "
                "FORCE=1 starts it again, RUN=name starts another run"
            )
    newest = newest_whole_checkpoint(output_dir)
    write_json(path, settings)
    write_run(output_dir, output_dir.name, settings["seed"], PartialState().num_processes)
    if newest is None:
        return None
    if not _optimizer_state(newest):
        raise RecipeError(
            f"{newest} holds a model without optimiser state, so training cannot resume from it; FORCE=1 starts it again"
        )
    print(f"{output_dir}: going on from {newest.name}", flush=True)
    return str(newest)


def newest_whole_checkpoint(output_dir: Path) -> Path | None:
    """The checkpoint to resume from; newer ones that are not whole are said so and put out of the way.

    One whose writing was cut short is removed, one that was damaged later is kept as `damaged-checkpoint-<step>`.
    """
    for folder in reversed(saved_checkpoints(output_dir)):
        damage = checkpoint_damage(folder)
        if damage is None:
            return folder
        if (folder / MANIFEST).is_file():
            kept = folder.with_name(f"damaged-{folder.name}")
            shutil.rmtree(kept, ignore_errors=True)
            os.replace(folder, kept)
            print(f"{folder.name} is damaged: {damage}; kept as {kept.name}, which nothing reads", flush=True)
        else:
            shutil.rmtree(folder)
            print(f"{folder}: incomplete ({damage}); removed", flush=True)
    return None


def _optimizer_state(checkpoint: Path) -> list[Path]:
    return [path for pattern in OPTIMIZER_STATE for path in sorted(checkpoint.glob(pattern))]


class RecordCheckpoints(TrainerCallback):
    """Gives each checkpoint its manifest, by which it counts as whole; then older ones keep their model alone.

    The sums are made while training continues. The newest `keep` stay as they are (None: all do): a run resumes from the newest.
    An 8 B model's checkpoint is 130 GB with its optimiser state and 18 GB without.
    """

    def __init__(self, keep: int | None = None) -> None:
        self.keep = keep
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="manifest")
        self.pending: list[Future[None]] = []

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._finish([future for future in self.pending if future.done()])
            folder = Path(args.output_dir)
            self.pending.append(self.worker.submit(self._record, folder / f"checkpoint-{state.global_step}"))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.wait()

    def wait(self) -> None:
        """Return once all manifests are written and older checkpoints trimmed."""
        self._finish(list(self.pending))

    def _finish(self, done: Sequence[Future[None]]) -> None:
        for future in done:
            self.pending.remove(future)
            try:
                future.result()
            except OSError as error:
                raise RecipeError(
                    f"{error.filename or 'the manifest of a checkpoint'}: {error.strerror}; make room or mend the disk, and "
                    "run the same command again"
                ) from error

    def _record(self, checkpoint: Path) -> None:
        try:
            write_manifest(checkpoint)
        except FileNotFoundError:
            if checkpoint.is_dir():
                raise
            return  # save_total_limit took it away meanwhile
        if self.keep is not None:
            whole = [path for path in saved_checkpoints(checkpoint.parent) if (path / MANIFEST).is_file()]
            for older in whole[: -self.keep]:
                trim_checkpoint(older)


def trim_checkpoint(checkpoint: Path) -> None:
    """Remove what only training needs from a checkpoint that has its whole model as safetensors beside it.

    The optimiser state goes first and at once, so that a checkpoint half trimmed is never taken for one to resume from.
    """
    if not any(checkpoint.glob("*.safetensors")):
        return
    others = [path for pattern in OTHER_STATE for path in checkpoint.glob(pattern)]
    forget_in_manifest(checkpoint, [*_optimizer_state(checkpoint), *others])
    for path in [*_optimizer_state(checkpoint), *others, *checkpoint.glob(".removed-*")]:
        removed = path.with_name(f".removed-{path.name.removeprefix('.removed-')}")
        os.replace(path, removed)
        shutil.rmtree(removed) if removed.is_dir() else removed.unlink()
