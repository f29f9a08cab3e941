"""A short part of `make chaos`: seeded faults of every kind on a small run, each survived."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from rl_runs import REPOSITORY

from benchmarks.chaos import FAULTS, Outcome, table


@pytest.mark.slow
def test_seeded_faults_are_survived(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.chaos", "--rounds", "6", "--seed", "7", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 of 6 faults survived." in done.stdout


def test_the_table_counts_what_was_survived_and_names_what_was_lost() -> None:
    outcomes = [
        Outcome(0, "sft", "kill", "after 3.0 s", 2),
        Outcome(1, "sft", "kill", "after 4.0 s", 2, lost="another model"),
        Outcome(2, "eval", "damage", "after 1.0 s", 3, refusals=["error: scores.json is not JSON"]),
    ]
    lines = table(outcomes).splitlines()
    assert lines[0] == "| fault | sft | eval | refused in one line, then put back |"
    assert lines[2:4] == ["| kill | 1 of 2 | – | 0 |", "| damage | – | 1 of 1 | 1 |"]
    assert lines[-2:] == ["2 of 3 faults survived.", "- round 1, sft, kill (after 4.0 s): another model"]
    assert set(FAULTS) >= {outcome.fault for outcome in outcomes}
