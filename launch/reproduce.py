"""The commands that make a folder's output again, from its `run.json`.

python -m launch.reproduce outputs/demo/sft
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

from foundation.provenance import NUMERIC, ProvenanceError, code_state, read_run, versions


def reproduction(output_dir: Path) -> list[str]:
    """The shell commands that make a folder's output again, with comments, in order."""
    runs = read_run(output_dir)["runs"]
    last = runs[-1]
    code = last["code"]
    lines = []
    if code.get("revision"):
        lines.append(f"git checkout {code['revision']}")
        if code.get("patch"):
            lines.append(f"git apply {shlex.quote(str(output_dir / code['patch']))}    # the code had changes")
        elif code.get("changed_files"):
            lines.append(f"# the code had changes that were not kept: {', '.join(code['changed_files'][:5])}")
    else:
        lines.append(f"# no git revision is known; the code's sha256 was {code.get('source_sha256')}")
    python = ".".join(last["python"].split(".")[:2])
    lines.append(f"make setup SYSTEM_PYTHON=python{python}    # the packages that this revision pins")
    if {"vllm", "deepspeed"} & set(last["versions"]):
        lines.append(".venv/bin/pip install -r requirements-gpu.txt")
    if len(runs) > 1:
        lines.append(f"# {len(runs)} runs, each going on from the checkpoint of the one before; one run does the same")
    lines += [
        f"export {name}={shlex.quote(last['environment'][name])}" for name in NUMERIC if name in last["environment"]
    ]
    if last["launched"]["nodes"] > 1:
        lines.append("# on each node, with NODE_RANK (0, 1, …) and MASTER_ADDR (the first node) in the environment:")
    lines.append(_full_command(last))
    lines.append(
        "# where its output is there already, it says so; add --output_dir, or --run of an evaluation, for another"
    )
    seed = "no seed" if last["seed"] is None else f"seed {last['seed']}"
    lines.append(f"# {seed}, {last['processes']} process(es), Python {last['python']}, {last['platform']}")
    return lines


def _full_command(run: dict[str, Any]) -> str:
    """One command that checks the machine, starts the processes, and runs the stage."""
    words, how = run["command"][1:], run["launched"]
    if words[:2] == ["-m", "launch.rank"]:  # of Slurm: what it ran
        words = words[words.index("-m", 2) :]
    if run["processes"] > 1:
        if words[:1] != ["-m"]:
            start = ["-m", "launch.torchrun", "--standalone", "--nproc_per_node", str(run["processes"])]
        elif how["cpu"]:
            start = ["-m", "launch.stage", "--processes", str(run["processes"]), "--"]
        else:
            start = ["-m", "launch.stage", "--gpus", str(how["per_node"]), "--nodes", str(how["nodes"])]
            start += [*(["--parallel", how["parallel"]] if how["parallel"] else []), "--"]
        words = [*start, *words]
    return " ".join([".venv/bin/python", *map(shlex.quote, words)])


def changed_since(output_dir: Path) -> list[str]:
    """What differs between the run and here: revision, package versions, Python; empty where nothing does."""
    last = read_run(output_dir)["runs"][-1]
    here, now = versions(), code_state()
    found = []
    if now.get("revision") != last["code"].get("revision"):
        found.append(f"code {str(last['code'].get('revision'))[:12]} → {str(now.get('revision'))[:12]}")
    for name in sorted({*here, *last["versions"]}):
        before, after = last["versions"].get(name), here.get(name)
        if before != after:
            found.append(f"{name} {before} → {after}")
    if platform.python_version() != last["python"]:
        found.append(f"Python {last['python']} → {platform.python_version()}")
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m launch.reproduce"
    )
    parser.add_argument("output", type=Path, help="a stage's folder, e.g. outputs/demo/sft")
    given = parser.parse_args(arguments)
    try:
        print("\n".join(reproduction(given.output)))
        differences = changed_since(given.output)
    except ProvenanceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"# this machine differs in: {', '.join(differences)}"
        if differences
        else "# this machine has the same versions"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
