"""What the READMEs claim, tried or compared with what it rests on: `make check-docs`."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
READMES = sorted(
    path
    for path in (REPOSITORY / "README.md", *REPOSITORY.glob("*/README.md"), *REPOSITORY.glob("recipes/*/README.md"))
)
OF_MAKE = ("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in OF_MAKE}


def commands(text: str) -> list[str]:
    """Commands of code blocks (fenced or indented) and code spans, without comments; continued lines joined."""
    text = text.replace("\\\n", " ")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += [line for line in text.splitlines() if line.startswith("    ")]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return [re.sub(r"\s+#.*$", "", line).strip() for line in lines]


def made() -> list[str]:
    """Every make command of the READMEs that can be tried as it stands."""
    found = set()
    for path in READMES:
        for command in commands(path.read_text()):
            if re.match(r"([A-Z_]+=\S+ )*make [a-z]", command) and not re.search(r"[…|<>]|\bTARGET\b|&&|;", command):
                found.add(command)
    return sorted(found)


@pytest.mark.parametrize("command", made())
def test_a_make_command_is_one_that_make_knows(command: str) -> None:
    words = shlex.split(command)
    variables = dict(word.split("=", 1) for word in words[: words.index("make")])
    line = ["make", "-n", "-o", "setup", *words[words.index("make") + 1 :]]
    done = subprocess.run(line, cwd=REPOSITORY, env={**ENVIRONMENT, **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_somewhere_and_modules_are_there(path: Path) -> None:
    text = path.read_text()
    for link in re.findall(r"\]\(([^)#\s]+)\)", text):
        if not link.startswith("http"):
            assert (path.parent / link).exists(), link
    for module in re.findall(r"python -m ([a-z_]+(?:\.[a-z_]+)*)", text):
        assert importlib.util.find_spec(module), module


def test_the_rewards_are_as_fast_as_the_readme_says() -> None:
    text = " ".join((REPOSITORY / "README.md").read_text().split())
    core, gpu = re.search(
        r"GRPO batch ([\d.]+) times as fast as the packages on one CPU core and ([\d.]+) times on", text
    ).groups()
    rewards = json.loads((REPOSITORY / "benchmarks" / "rewards.json").read_text())
    measured = json.loads((REPOSITORY / "benchmarks" / "gpu.json").read_text())[0]["seconds"]
    assert round(rewards["parts"]["composite"]["ratio"], 1) == float(core)
    assert round(measured["packages"]["composite"] / measured["float32"]["composite"]) == float(gpu)


def test_planned_hours_are_those_that_the_plan_gives() -> None:
    from launch.planning.assumed import Assumptions, Target
    from launch.planning.stage import plan_recipe

    def target(gpus: int, judge: int | None = None, overrides: tuple[str, ...] = ()) -> Target:
        return Target(gpus, "h100", "zero3", Path("nothing prepared"), Assumptions(), overrides, judge)

    text = (REPOSITORY / "launch" / "README.md").read_text()
    said = re.search(r"(\d+) hours, (\d+) hours and (\d+) hours planned on H100s, ([\d.]+) days in all", text).groups()
    plans = plan_recipe("unirg_cxr", target(8))
    assert [round(plan.hours) for plan in plans[:3]] == list(map(float, said[:3]))
    assert round(sum(plan.hours for plan in plans) / 24, 1) == float(said[3])
    (apart,) = plan_recipe("unirg_cxr", target(4, 4), ["rl_step2"])
    assert f"it would be {apart.hours / 24:.1f} days" in " ".join(text.split())
    rows = re.findall(r"\| `(Qwen/\S+)`[^|]*\| (\d+) GiB \| ([\d.]+) h \| ([\d.]+) h \| ([\d.]+) (h|days) \|", text)
    assert len(rows) == 3
    for name, gib, step2, part, alone, unit in rows:
        given = ("--judge_model", name)
        (beside,) = plan_recipe("unirg_cxr", target(8, None, given), ["rl_step2"])
        (own,) = plan_recipe("unirg_cxr", target(8, 1, given), ["rl_step2"])
        assert round(beside.downloads["judge"] / 2**30) == float(gib)
        assert (round(beside.hours, 1), round(beside.judge_hours, 1)) == (float(step2), float(part))
        assert round(own.judge_hours / (24 if unit == "days" else 1), 1) == float(alone)
