"""The requirement files: what is pinned, what is installed here, and what a machine with GPUs gets go together."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from launch.checks.packages import pinned

REPOSITORY = Path(__file__).resolve().parents[2]
# What a torch built for CUDA brings; a CPU build has none of it, so that constraints.txt cannot name it.
OF_CUDA = re.compile(r"nvidia-|cuda-|triton$")


def pins(name: str) -> dict[str, str]:
    """Package → version of a requirements file, names in one spelling."""
    return {canonicalize_name(package): version for package, version in pinned(REPOSITORY / name).items()}


def everything_needed() -> dict[str, str | None]:
    """Package → installed version (None: not there), of requirements.txt, requirements-dev.txt and all they bring."""
    queue = [Requirement(name) for name in (*pins("requirements.txt"), *pins("requirements-dev.txt"))]
    versions: dict[str, str | None] = {}
    seen: set[tuple[str, str]] = set()
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        extras = {"", *requirement.extras}
        if (key := (name, ",".join(sorted(extras)))) in seen or OF_CUDA.match(name):
            continue
        seen.add(key)
        try:
            versions[name] = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            versions[name] = None
            continue
        for line in metadata.requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                queue.append(needed)
    return versions


def for_gpus() -> bool:
    """Whether this environment was set up for a machine with GPUs (launch/setup.sh notes it)."""
    noted = REPOSITORY / ".venv" / "installed"
    return noted.is_file() and "kind gpu" in noted.read_text()


def test_what_is_installed_here_is_what_was_tested() -> None:
    if for_gpus():
        wanted = {
            name: version for name, version in pins("requirements-gpu.txt").items() if name in everything_needed()
        }
    else:
        wanted = pins("constraints.txt")
    assert everything_needed() == wanted, "make setup in a fresh .venv, or bring the pins up to date"


def test_pip_finds_nothing_to_change_here() -> None:
    # From what is installed alone: an index is neither needed nor asked.
    files = ["-r", "requirements.txt", "-r", "requirements-dev.txt", "-c", "constraints.txt"]
    if for_gpus():
        files = ["--no-deps", "-r", "requirements-gpu.txt"]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--disable-pip-version-check", *files]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert "Would install" not in done.stdout


def test_a_machine_with_gpus_gets_the_same_packages_but_for_numpy() -> None:
    gpu = pins("requirements-gpu.txt")
    differing = {name for name, version in pins("requirements.txt").items() if gpu.get(name) != version}
    assert differing == {"numpy"}
    assert {name: gpu[name] for name in pins("requirements-gpu.in")} == pins("requirements-gpu.in")
    lines = (REPOSITORY / "requirements-gpu.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==\S+", line) for line in lines if not line.startswith("#"))


@pytest.mark.slow
def test_pip_resolves_the_gpu_requirements_in_a_fresh_environment(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    pip = [str(tmp_path / "venv" / "bin" / "python"), "-m", "pip", "install", "--quiet", "--dry-run"]
    pip += ["--disable-pip-version-check", "--report", str(tmp_path / "report.json")]
    if subprocess.run([*pip, "--no-deps", "liger-kernel==0.8.5"], capture_output=True).returncode:
        pytest.skip("no package index can be reached from here")
    command = [*pip, "-r", str(REPOSITORY / "requirements-gpu.txt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "report.json").read_text())
    chosen = {
        canonicalize_name(i["metadata"]["name"]): i["metadata"]["version"].split("+")[0] for i in report["install"]
    }
    assert chosen == pins("requirements-gpu.txt"), "nothing beside what is pinned, and all of it"
