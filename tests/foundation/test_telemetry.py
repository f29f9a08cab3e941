"""Nothing is sent anywhere: every entry switches off what the libraries would report of themselves, before they are imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LINES = (REPOSITORY / "foundation" / "telemetry.env").read_text().splitlines()
WANTED = dict(line.split("=", 1) for line in LINES if line and not line.startswith("#"))
CLEAN = {key: value for key, value in os.environ.items() if key not in WANTED}
PACKAGES = sorted(path.parent.name for path in REPOSITORY.glob("*/__init__.py") if path.parent.name != "tests")


def test_the_libraries_that_report_are_all_in_the_list() -> None:
    assert {"DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY", "VLLM_NO_USAGE_STATS", "GRADIO_ANALYTICS_ENABLED"} <= set(
        WANTED
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_any_package_switches_reports_off(package: str) -> None:
    code = f"import {package}, os, sys; print({{k: os.environ.get(k) for k in {sorted(WANTED)!r}}}); "
    code += "print([m for m in ('torch', 'trl', 'vllm', 'huggingface_hub') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=CLEAN, capture_output=True, text=True)
    variables, imported = done.stdout.splitlines()
    assert eval(variables) == WANTED
    assert eval(imported) == [], "a library was imported before the variables were set"


def test_the_trainers_library_takes_it() -> None:
    code = "import recipes; from huggingface_hub import constants; print(constants.HF_HUB_DISABLE_TELEMETRY)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=CLEAN, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize("script", ["launch/judge_server.sh", "launch/vllm_server.sh"])
def test_servers_are_started_with_it(script: str, tmp_path: Path) -> None:
    for name in ("vllm", "python"):
        body = f"env > {tmp_path}/env" if name == "vllm" else "exit 0"
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**CLEAN, "VLLM": str(tmp_path / "vllm"), "PYTHON": str(tmp_path / "python"), "MODEL": "some/model"}
    done = subprocess.run(["bash", script], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines() if "=" in line)
    assert {key: seen.get(key) for key in WANTED} == WANTED


def test_the_judge_is_served_from_the_weights_folder_under_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "weights" / "Qwen3-30B-A3B-Instruct-2507").mkdir(parents=True)
    (tmp_path / "weights" / "Qwen3-30B-A3B-Instruct-2507" / "config.json").write_text("{}")
    program = tmp_path / "vllm"
    program.write_text(f'#!/bin/sh\necho "$@" "offline=$HF_HUB_OFFLINE" > {tmp_path}/asked\n')
    program.chmod(0o755)
    for weights, served in (
        (tmp_path / "weights", tmp_path / "weights" / "Qwen3-30B-A3B-Instruct-2507"),
        (tmp_path / "no", "Qwen/Qwen3-30B-A3B-Instruct-2507"),
    ):
        environment = {
            **CLEAN,
            "VLLM": str(program),
            "PYTHON": "true",
            "WEIGHTS_DIR": str(weights),
            "HF_HUB_OFFLINE": "",
        }
        subprocess.run(["bash", "launch/judge_server.sh"], cwd=REPOSITORY, env=environment, check=True)
        asked = (tmp_path / "asked").read_text()
        assert asked.startswith(f"serve {served} --served-model-name Qwen/Qwen3-30B-A3B-Instruct-2507 ")
        assert ("offline=1" in asked) is (weights.name == "weights")


def test_slurm_jobs_pass_it() -> None:
    for path in (REPOSITORY / "launch" / "slurm").glob("*.sbatch"):
        assert "enter_repository" in path.read_text(), path
    code = "source launch/slurm/common.sh; PYTHON=true; enter_repository; env"
    done = subprocess.run(["bash", "-c", code], cwd=REPOSITORY, env=CLEAN, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for key, value in WANTED.items():
        assert re.search(rf"^{key}={value}$", done.stdout, re.MULTILINE), key
