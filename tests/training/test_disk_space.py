"""A disk that fills up while a stage trains stops it in one line, before a half checkpoint is written."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from stage_runs import run_stage
from transformers import TrainingArguments

from foundation.errors import RecipeError
from tests.training.test_resume import SFT, command, finish
from training.disk_space import checkpoint_bytes, folder_bytes, model_bytes, require_room

MIB = 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 56 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=56m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("a file system of its own can only be mounted by root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_training_stops_before_a_checkpoint_that_would_not_fit(
    small_disk: Path, tiny_base: Path, phantom_data: Path
) -> None:
    out = small_disk / "sft"
    arguments = command("recipes.sft", "sft", out, tiny_base, phantom_data, **{**SFT, "save_steps": 1})
    arguments = [*arguments, "--keep_optimizer_states", "20"]
    done = run_stage(*arguments[2:])
    output = done.stdout + done.stderr
    assert done.returncode == 2, output
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in output
    saved = sorted(out.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert 1 <= len(saved) < SFT["max_steps"]
    assert all((folder / "trainer_state.json").is_file() for folder in saved), "none is half written"
    assert f"checkpoint-{len(saved) + 1} needs about" in errors[0]
    assert f"resumes from checkpoint-{len(saved)}" in errors[0]
    assert not (out / "final").exists()

    subprocess.run(["mount", "-o", "remount,size=2g", str(small_disk)], check=True)
    output = finish(arguments)
    assert f"going on from checkpoint-{len(saved)}" in output
    assert (out / "result.json").is_file()


def test_the_limit_is_what_is_needed_and_a_little_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, enough in ((105 * MIB, True), (105 * MIB - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: shutil._ntuple_diskusage(0, 0, free))
        if enough:
            require_room(str(tmp_path), "checkpoint-5", 100 * MIB)
        else:
            with pytest.raises(RecipeError, match=r"105 MiB free, checkpoint-5 needs about 100 MiB.*starts over"):
                require_room(str(tmp_path), "checkpoint-5", 100 * MIB)


def test_what_a_first_checkpoint_takes(tmp_path: Path) -> None:
    model = torch.nn.Linear(1000, 250, bias=False)
    whole = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert model_bytes(model) == 1_000_000
    assert checkpoint_bytes(model, whole) == 3_000_000
    assert checkpoint_bytes(model, TrainingArguments(str(tmp_path), use_cpu=True, save_only_model=True)) == 1_000_000
    assert checkpoint_bytes(model.to(torch.bfloat16), whole) == 500_000 + 3_000_000
    optimizer = torch.optim.AdamW(model.float().parameters())
    model(torch.ones(1, 1000)).sum().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "saved.pt")
    assert folder_bytes(str(tmp_path)) == pytest.approx(checkpoint_bytes(model, whole), rel=0.01)
