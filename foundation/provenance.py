"""What made an output: `run.json` in its folder, and the commands that make it again.

python -m foundation.provenance outputs/demo/sft       (make reproduce OUTPUT=outputs/demo/sft)
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from foundation.errors import OneLineError
from foundation.machine import MachineError
from foundation.masking import mask, mask_words
from foundation.recipe_files import files_of
from foundation.stage_command import is_true, settings_of

NAME = "run.json"
PATCH = "run.patch"
OURS = ("foundation", "rewards", "data_prep", "model", "settings", "training", "evaluation", "recipes", "launch")
REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = (
    "torch",
    "trl",
    "transformers",
    "accelerate",
    "datasets",
    "peft",
    "numpy",
    "pyarrow",
    "pillow",
    "deepspeed",
    "vllm",
    "flash-attn",
    "liger-kernel",
    "bert-score",
    "radgraph",
    "f1chexbert",
)
# Variables that change the numbers, which a reproduction sets again.
NUMERIC = ("OMP_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG", "PYTHONHASHSEED", "NCCL_ALGO")
# Variables that change what is computed or where; never one that may hold a key.
_ENVIRONMENT = (
    *NUMERIC,
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE",
    "ACCELERATE_USE_FSDP",
    "FSDP_VERSION",
    "SLURM_JOB_NUM_NODES",
)
_PATCH_LIMIT = 5 * 2**20


class ProvenanceError(OneLineError):
    """An output folder that does not say what made it: one line."""


def versions() -> dict[str, str]:
    """The versions of the installed packages that decide the numbers."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _git(*arguments: str) -> str | None:
    """git's answer in this repository, or None where there is no git or no repository."""
    try:
        run = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout if run.returncode == 0 else None


def code_state() -> dict[str, Any]:
    """The code's git revision, and whether files differ from it; without git a sha256 over the Python files."""
    revision = _git("rev-parse", "HEAD")
    if revision is None:
        digest = hashlib.sha256()
        for folder in OURS:
            for path in sorted((REPOSITORY / folder).rglob("*.py")):
                digest.update(path.relative_to(REPOSITORY).as_posix().encode() + path.read_bytes())
        return {"revision": None, "source_sha256": digest.hexdigest()}
    changed = _git("status", "--porcelain", "--untracked-files=no") or ""
    return {"revision": revision.strip(), "changed_files": [line[3:] for line in changed.splitlines()]}


def command() -> list[str]:
    """This process's command, without the interpreter's path, its secrets masked."""
    words = list(sys.orig_argv[1:])
    while words and words[0] == "-u":
        words.pop(0)
    return ["python", *mask_words(words)]


def launched(words: Sequence[str], processes: int) -> dict[str, Any]:
    """How this process and those beside it were started: `cpu`, nodes, processes of each node, and how the model is spread."""
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    parallel = "ddp" if processes > 1 else None
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        parallel = f"zero{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '')}"
    elif os.environ.get("ACCELERATE_USE_FSDP") == "true":
        parallel = "fsdp2"
    try:
        cpu = is_true(settings_of(words).get("use_cpu"))
    except MachineError:  # its own parser has read it; only the launcher's cannot
        cpu = False
    return {"cpu": cpu, "nodes": max(1, processes // per_node), "per_node": per_node, "parallel": parallel}


def write_run(output_dir: Path, stage: str, seed: int | None, processes: int = 1) -> dict[str, Any]:
    """Write `run.json` (and, where code differs from its revision, `run.patch`) to `output_dir`; returns its content.

    Args:
        seed: of all that is drawn at random; None where nothing is.

    To be called by the main process before long work, so that an interrupted run has it too. A run that resumes from
    a checkpoint adds itself to `runs`.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    words = command()
    recipe = Path(words[words.index("--config") + 1]) if "--config" in words[:-1] else None
    run: dict[str, Any] = {
        "stage": stage,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": words,
        "processes": processes,
        "launched": launched(words, processes),
        "seed": seed,
        "code": code_state(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
        "environment": {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
    }
    if recipe is not None and recipe.is_file():
        own, *extended = [_recipe(path) for path in files_of(recipe)]
        run["recipe"] = own | ({"extends": extended} if extended else {})
    if run["code"].get("changed_files"):
        patch = mask(_git("diff", "HEAD", "--binary") or "")
        if len(patch) <= _PATCH_LIMIT:
            _write(output_dir / PATCH, patch)
            run["code"]["patch"] = PATCH
            run["code"]["patch_sha256"] = hashlib.sha256(patch.encode()).hexdigest()
    path = output_dir / NAME
    earlier = read_run(output_dir)["runs"] if path.is_file() else []
    content = {"runs": [*earlier, run]}
    _write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return content


def _recipe(path: Path) -> dict[str, str]:
    content = path.read_bytes()
    return {"file": str(path), "sha256": hashlib.sha256(content).hexdigest(), "text": mask(content.decode())}


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def read_run(output_dir: Path) -> dict[str, Any]:
    """The content of a folder's `run.json`.

    Raises:
        ProvenanceError: there is none, or it is damaged.
    """
    path = output_dir / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for run in content["runs"]:
            run["command"], run["code"], run["versions"], run["seed"]
            # Runs of before it was written.
            run.setdefault("launched", {"cpu": False, "nodes": 1, "per_node": run["processes"], "parallel": None})
    except FileNotFoundError:
        raise ProvenanceError(f"{output_dir} has no {NAME}; give a stage's folder, e.g. outputs/demo/sft") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ProvenanceError(f"{path} is damaged ({error})") from error
    return content
