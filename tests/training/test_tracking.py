"""Curves go to one tracker by one key; report text goes nowhere by itself; GPU memory is shown where a GPU is used."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rl_runs import grpo_run
from transformers import TrainerState
from trl import GRPOConfig

from foundation.errors import RecipeError
from model.processor import load_processor
from training.progress import StageProgress
from training.result import write_result
from training.trackers import TRACKERS, check_report_to
from training.trainers import UnscoredRows


def config(folder: Path, **settings) -> GRPOConfig:
    return GRPOConfig(output_dir=str(folder), use_cpu=True, bf16=False, num_generations=8, **settings)


def test_a_tracker_that_is_not_installed_is_named_with_its_package(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(TRACKERS, "tensorboard", "no_such_package")
    training = config(tmp_path)
    training.report_to = ["tensorboard"]
    with pytest.raises(RecipeError, match="report_to: tensorboard needs a package; pip install no_such_package"):
        check_report_to(training)
    training.report_to = []
    check_report_to(training)


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_report_text_and_checkpoints_go_to_no_tracker(mode: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(TRACKERS, "wandb", "json")  # stands for an installed package
    monkeypatch.setenv("WANDB_MODE", mode)
    training = config(tmp_path, log_completions=True)
    training.report_to = ["wandb"]
    with pytest.raises(RecipeError, match=r"log_completions would send report text to wandb"):
        check_report_to(training)
    training.log_completions = False
    check_report_to(training)  # curves are numbers
    monkeypatch.setenv("WANDB_LOG_MODEL", "checkpoint")
    with pytest.raises(RecipeError, match="WANDB_LOG_MODEL"):
        check_report_to(training)


def test_a_tracker_that_is_not_known_is_refused(tmp_path: Path) -> None:
    training = config(tmp_path)
    training.report_to = ["mlflow"]
    with pytest.raises(RecipeError, match="mlflow is not one of wandb, trackio, tensorboard"):
        check_report_to(training)


def test_trls_warning_with_the_whole_row_is_dropped_and_counted(caplog) -> None:
    logger = logging.getLogger("a logger of trl")
    unscored = UnscoredRows()
    logger.addFilter(unscored)
    with caplog.at_level(logging.WARNING):
        logger.warning(
            "All reward functions returned None for the following kwargs:\n{'reference': 'Findings: secret'}"
        )
        logger.warning("Something else")
    assert "secret" not in caplog.text
    assert "Something else" in caplog.text
    assert unscored.count == 1


def use_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 40 << 30)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: (43 << 30) + (103 << 20))


def test_the_progress_line_ends_with_the_peak_of_gpu_memory(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    state = TrainerState(global_step=3, max_steps=9, is_world_process_zero=True)
    progress = StageProgress("sft")
    progress.on_log(None, state, None, {"loss": 0.5})
    assert "GPU" not in capsys.readouterr().out  # on a CPU
    use_gpu(monkeypatch)
    progress.on_log(None, state, None, {"loss": 0.5})
    assert capsys.readouterr().out.endswith(" left · GPU 43.1 GiB\n")


def test_the_result_holds_the_peak_of_gpu_memory_where_a_gpu_is_used(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_base, tmp_path / "final")
    trainer = SimpleNamespace(
        args=SimpleNamespace(output_dir=str(tmp_path)),
        processing_class=load_processor(str(tiny_base)),
        state=TrainerState(global_step=1),
        accelerator=SimpleNamespace(num_processes=1),
    )
    write_result(trainer, "sft", {}, {})
    assert "peak_gpu_memory_mib" not in json.loads((tmp_path / "result.json").read_text())
    use_gpu(monkeypatch)
    write_result(trainer, "sft", {}, {})
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["peak_gpu_memory_mib"] == {"allocated": 40 * 1024, "reserved": 43 * 1024 + 103}


def test_a_tensorboard_run_holds_each_reward_part_and_monitor_as_a_curve(
    tiny_base: Path, phantom_data: Path, tmp_path: Path
) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = grpo_run(tmp_path / "rl_step1", tiny_base, phantom_data, report_to="tensorboard", max_steps=3)
    (written,) = (tmp_path / "rl_step1").rglob("events.out.tfevents.*")
    curves = events.EventAccumulator(str(written)).Reload()
    parts = [f"reward_parts/{metric.name}" for metric in run.trainer.reward_funcs[0].composite.metrics.values()]
    assert {"reward_parts/bertscore[offline-hash]", "reward_parts/radgraph[offline-rules]"} <= set(parts)
    for name in ("loss", "reward", "monitor/unique", *parts):
        points = {point.step: point.value for point in curves.Scalars(f"train/{name}")}
        logged = {entry["step"]: entry[name] for entry in run.log if name in entry}
        assert points == pytest.approx(logged, rel=1e-5)
        assert len(points) >= 2
    assert sorted(curves.Tags()["tensors"]) == ["args/text_summary", "model_config/text_summary"]  # no report
