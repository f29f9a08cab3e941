"""Curves go to one tracker by one key; report text goes nowhere by itself."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from trl import GRPOConfig

from recipes import stage
from recipes.errors import RecipeError
from recipes.stage import check_report_to
from recipes.trainers import UnscoredRows


def config(folder: Path, **settings) -> GRPOConfig:
    return GRPOConfig(output_dir=str(folder), use_cpu=True, bf16=False, num_generations=8, **settings)


def test_a_tracker_that_is_not_installed_is_named_with_its_package(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(stage.TRACKERS, "tensorboard", "no_such_package")
    training = config(tmp_path)
    training.report_to = ["tensorboard"]
    with pytest.raises(RecipeError, match="report_to: tensorboard needs a package; pip install no_such_package"):
        check_report_to(training)
    training.report_to = []
    check_report_to(training)


@pytest.mark.parametrize(
    ("sources", "log_completions", "mode", "refused"),
    [
        ({"mimic", "iu_xray"}, True, "online", True),
        ({"mimic"}, True, "offline", False),
        ({"mimic"}, False, "online", False),  # curves are numbers
        ({"iu_xray", "phantom_coast"}, True, "online", False),  # public reports
    ],
)
def test_credentialed_reports_are_not_sent_to_a_remote_tracker(
    sources: set, log_completions: bool, mode: str, refused: bool, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setitem(stage.TRACKERS, "wandb", "json")  # stands for an installed package
    monkeypatch.setenv("WANDB_MODE", mode)
    training = config(tmp_path, log_completions=log_completions)
    training.report_to = ["wandb"]
    if refused:
        with pytest.raises(RecipeError, match=r"log_completions would send reports of mimic to wandb"):
            check_report_to(training, sources)
    else:
        check_report_to(training, sources)


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
