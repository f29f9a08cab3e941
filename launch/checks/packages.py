"""Is this Python the right one, and are its packages those that are pinned?"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from foundation.provenance import REPOSITORY
from launch.checks.question import Check, Question


def check_python(question: Question) -> Iterator[Check]:
    """Python 3.11 or newer, as TRL wants."""
    version = platform.python_version()
    if sys.version_info < (3, 11):
        yield Check(
            "Python", "missing", version, "install Python 3.11 or newer, then: make setup SYSTEM_PYTHON=python3.11"
        )
    else:
        yield Check("Python", "ok", version)


def pinned(path: Path) -> dict[str, str]:
    """Package → version of the `name==version` lines of a requirements file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(
        match.groups() for line in lines if (match := re.match(r"([A-Za-z0-9_.-]+)(?:\[.*\])?==([^\s;#]+)", line))
    )


def installed(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_packages(question: Question) -> Iterator[Check]:
    """The pinned packages, and that the versions that are there were made for each other."""
    pins = pinned(REPOSITORY / "requirements.txt")
    if installed("vllm"):  # this environment was made by requirements-gpu.txt
        gpu = pinned(REPOSITORY / "requirements-gpu.txt")
        pins = {name: gpu[name] for name in pins}
    there = {name: installed(name) for name in pins}
    # torch 2.13.0+cpu is torch 2.13.0 built for CPUs
    good = [name for name, version in pins.items() if (there[name] or "").split("+")[0] == version]
    absent = [f"{name} {pins[name]}" for name in pins if there[name] is None]
    other = [f"{name} {there[name]} instead of {pins[name]}" for name in pins if there[name] and name not in good]
    if absent:
        yield Check("packages", "missing", f"not installed: {', '.join(absent)}", "make setup")
    elif other:
        yield Check("packages", "warning", f"{', '.join(other)}; tested with the pinned versions only", "make setup")
    else:
        versions = ", ".join(f"{name} {there[name]}" for name in ("torch", "trl", "transformers") if name in pins)
        yield Check("packages", "ok", f"{len(pins)} as pinned: {versions}")
    conflicts = version_conflicts([name for name, version in there.items() if version])
    if conflicts:
        shown = "; ".join(conflicts[:3])
        yield Check("versions together", "warning", shown, "make setup in a fresh .venv (rm -rf .venv)")


def version_conflicts(packages: list[str]) -> list[str]:
    """Requirements of the given installed packages that what is installed does not meet (extras left out)."""
    try:
        from packaging.requirements import Requirement
    except ImportError:  # nothing is installed yet, which check_packages says
        return []
    found = []
    for package in packages:
        for line in importlib.metadata.requires(package) or []:
            requirement = Requirement(line)
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            version = installed(requirement.name)
            if version and not requirement.specifier.contains(version, prereleases=True):
                found.append(f"{package} wants {requirement.name}{requirement.specifier}, {version} is there")
    return found
