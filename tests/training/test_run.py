"""What every stage has around its training, in the order that it needs."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file
from transformers import TrainerControl, TrainerState

from foundation.errors import read_json
from foundation.files import write_json
from model import films
from model.checkpoint_files import MANIFEST
from training.run import run_training


class SavesOnce:
    """As much of a trainer as `run_training` needs: it saves one checkpoint and ends."""

    def __init__(self, folder: Path) -> None:
        self.args = SimpleNamespace(output_dir=str(folder), logging_nan_inf_filter=True, learning_rate=1e-3)
        self.state = TrainerState(global_step=2, max_steps=2, is_world_process_zero=True)
        self.accelerator, self.callbacks, self.losses, self.grad_norm = SimpleNamespace(), [], (), None

    def add_callback(self, callback: object) -> None:
        self.callbacks.append(callback)

    def remove_callback(self, kind: type) -> None:
        """It has none of its own."""

    def train(self, resume_from_checkpoint: str | None) -> None:
        checkpoint = Path(self.args.output_dir) / "checkpoint-2"
        checkpoint.mkdir()
        save_file({"weight": torch.ones(2)}, checkpoint / "model.safetensors", metadata={"format": "pt"})
        event = (self.args, self.state, TrainerControl())
        for name in ("on_save", "on_train_end"):
            for callback in self.callbacks:
                getattr(callback, name)(*event, model=torch.nn.Linear(1, 1))


def test_a_manifest_is_of_all_that_a_checkpoint_gets(tmp_path: Path, monkeypatch) -> None:
    """Its sums are made in a thread: begun before the last file is there, they lack it, or meet its temporary name."""
    write_json(tmp_path / "settings.json", {"films": {"mode": "stretch", "size": 512}})
    write = films.write_form
    monkeypatch.setattr(films, "write_form", lambda *given: (time.sleep(0.5), write(*given)))
    run_training(SavesOnce(tmp_path), "sft", None)
    named = set(read_json(tmp_path / "checkpoint-2" / MANIFEST)["files"])
    there = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
    assert named == there - {MANIFEST} == {"model.safetensors", films.FILE}
