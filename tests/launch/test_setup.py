"""make setup: one command for either machine, which stays what it became; what a GPU machine lacks is said first."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = (
    "requirements.txt",
    "requirements-dev.txt",
    "requirements-gpu.txt",
    "requirements-ratescore.txt",
    "constraints.txt",
)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A checkout with an environment whose pip notes what it is asked for, and no NVIDIA driver."""
    for name in FILES:
        shutil.copy(REPOSITORY / name, tmp_path / name)
    program(tmp_path / "venv" / "bin" / "python", f'echo "$@" >> {tmp_path}/asked')
    program(tmp_path / "bin" / "nvidia-smi", "exit 9")
    return tmp_path


def program(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


def with_driver(machine: Path, version: str) -> None:
    program(machine / "bin" / "nvidia-smi", f'[[ $1 == -L ]] && echo "GPU 0: NVIDIA H100" || echo {version}')


def setup(machine: Path, gpu: str = "") -> tuple[subprocess.CompletedProcess, list[str]]:
    """Run it; what pip was asked for this time."""
    (machine / "asked").unlink(missing_ok=True)
    environment = os.environ | {
        "VENV": "venv",
        "GPU": gpu,
        "PATH": f"{machine}/bin:{os.environ['PATH']}",
        "CUDA_HOME": "/no",
    }
    done = subprocess.run(
        [REPOSITORY / "launch" / "setup.sh"], cwd=machine, env=environment, capture_output=True, text=True
    )
    asked = (machine / "asked").read_text().splitlines() if (machine / "asked").is_file() else []
    return done, asked


def test_a_machine_without_gpus_gets_the_cpu_packages_once(machine: Path) -> None:
    done, asked = setup(machine)
    assert done.returncode == 0, done.stderr
    assert "for a CPU" in done.stdout
    assert "-r requirements.txt -r requirements-dev.txt -c constraints.txt" in asked[1]
    assert setup(machine)[1] == [], "nothing has changed"
    os.utime(machine / "requirements.txt", (0, 2e9))
    assert setup(machine)[1] == [], "another time of a file is no change"
    (machine / "constraints.txt").write_text("changed")
    assert setup(machine)[1] != []


def test_a_machine_with_gpus_keeps_the_gpu_packages_after_a_pull(machine: Path) -> None:
    with_driver(machine, "580.95.05")
    done, asked = setup(machine)
    assert done.returncode == 0, done.stderr
    assert "requirements-gpu.txt" in asked[0]
    (machine / "requirements.txt").write_text("changed by a pull")
    assert setup(machine)[1] == [], "the CPU pins are not laid over it"
    program(machine / "bin" / "nvidia-smi", "exit 9")  # a node without GPUs that shares the environment
    assert setup(machine)[1] == []
    done, asked = setup(machine, gpu="0")
    assert "constraints.txt" in asked[0]


@pytest.mark.parametrize(("version", "message"), [("570.12", "wants 580 or newer"), ("", "finds no NVIDIA driver")])
def test_a_driver_that_is_too_old_is_named_before_anything_is_fetched(
    machine: Path, version: str, message: str
) -> None:
    if version:
        with_driver(machine, version)
    done, asked = setup(machine, gpu="1")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert asked == []
