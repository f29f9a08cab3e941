"""Two updates of every stage: kill and resume, shared prompts on and off, vLLM's log-probabilities, memory against plan."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from foundation.machine import GIB, gpus
from launch.planning.assumed import GPUS, Target, read_assumptions
from launch.planning.stage import plan_training
from launch.verifying.line import Line, Subject, skipped
from launch.verifying.stage_runs import UPDATES, Done, recipe_file, run_stage, short_recipe

RL_STAGES = ("rl_step1", "rl_step2")
COMPARED = ("loss", "grad_norm", "reward", "kl")
# Our choice: relative, of figures in float32 and in bfloat16.
CLOSE = {"float32": 1e-3, "bfloat16": 0.05}
MOST_LOGP_DIFFERENCE = 0.05  # mean over tokens, nats; our choice
MEMORY_ROOM = 1.2  # our choice


def check_training(subject: Subject) -> Iterator[Line]:
    """Lines of SFT, then of each RL step that the recipe has."""
    folder = Path(tempfile.mkdtemp(prefix="runs-", dir=subject.out))
    try:
        yield from _sft(subject, folder)
        for stage in RL_STAGES:
            if recipe_file(subject, stage) is None:
                yield skipped(stage, f"{UPDATES} updates", f"recipe {subject.recipe} has no {stage}")
            else:
                yield from _rl(subject, stage, folder)
    finally:
        shutil.rmtree(folder)


def _sft(subject: Subject, folder: Path) -> Iterator[Line]:
    saves = {"save_strategy": "steps", "save_steps": 1}
    recipe = short_recipe(subject, "sft", folder / "sft-whole", **saves)
    whole = run_stage(subject, recipe)
    yield _updates("sft", whole)
    if whole.error:
        return
    yield memory_line(subject, recipe, whole)
    killed = short_recipe(subject, "sft", folder / "sft-killed", **saves)
    was_killed = run_stage(subject, killed, kill_after=1).killed
    resumed = run_stage(subject, killed)
    yield resumed_line(whole, resumed, was_killed, on_gpu=bool(subject.gpus))


def resumed_line(whole: Done, resumed: Done, was_killed: bool, on_gpu: bool) -> Line:
    """A run that was killed after its first update and resumed, against one that nothing stopped."""
    check = "sft: kill -9 after the first update, then the same command"
    if resumed.error or not was_killed:
        why = resumed.error or "the run had finished before it could be killed"
        return Line(check, "it resumes and ends", why, False)
    same = resumed.result["final_sha256"] == whole.result["final_sha256"]
    losses = [update["loss"] for update in resumed.updates], [update["loss"] for update in whole.updates]
    close = len(losses[0]) == len(losses[1]) and _worst(resumed, whole, ("loss",))[0] < CLOSE["bfloat16"]
    expected = "the losses of a run not killed" if on_gpu else "the model of a run not killed, to the bit"
    found = f"losses {_numbers(losses[0])} and {_numbers(losses[1])}, models {'equal' if same else 'differ'}"
    return Line(check, expected, found, close if on_gpu else same)


def _rl(subject: Subject, stage: str, folder: Path) -> Iterator[Line]:
    recipe = short_recipe(subject, stage, folder / f"{stage}-shared", share_prompts=True)
    shared = run_stage(subject, recipe)
    yield _updates(stage, shared)
    if shared.error:
        return
    yield memory_line(subject, recipe, shared)
    plain = run_stage(subject, short_recipe(subject, stage, folder / f"{stage}-rows", share_prompts=False))
    yield shared_line(stage, shared, plain)
    yield _vllm(subject, stage, folder)
    for used in folder.iterdir():
        shutil.rmtree(used)


def _updates(stage: str, run: Done) -> Line:
    check, expected = f"{stage}: {UPDATES} updates", "finite losses, gradients above 0"
    if run.error:
        return Line(check, expected, run.error, False)
    losses, norms = ([update.get(key) for update in run.updates] for key in ("loss", "grad_norm"))
    well = len(losses) == UPDATES and all(n is not None and math.isfinite(n) for n in losses)
    moved = all(n is not None and math.isfinite(n) and n > 0 for n in norms)
    found = f"losses {_numbers(losses)}, gradients {_numbers(norms)}, {run.result['seconds']:.1f} s"
    return Line(check, expected, found, well and moved)


def shared_line(stage: str, shared: Done, plain: Done) -> Line:
    """The same updates with each study's prompt as one row, and as a row for each of its rollouts."""
    check = f"{stage}: share_prompts on and off"
    if plain.error:
        return Line(check, "equal figures", plain.error, False)
    allowed = CLOSE.get(str(shared.result["settings"].get("dtype")), CLOSE["bfloat16"])
    worst, key = _worst(shared, plain, COMPARED)
    both = [(a["loss"], b["loss"]) for a, b in zip(shared.updates, plain.updates, strict=True)]
    seconds = f"{shared.result['seconds']:.1f} s on, {plain.result['seconds']:.1f} s off"
    found = f"largest difference {worst:.2g} ({key}); losses {', '.join(f'{a:.6g} and {b:.6g}' for a, b in both)}; {seconds}"
    return Line(check, f"{', '.join(COMPARED)} equal to {allowed:g}", found, worst <= allowed)


def _worst(one: Done, other: Done, keys: tuple[str, ...]) -> tuple[float, str]:
    """The largest difference, relative where figures are above 1, and its key; infinite where figures are missing."""
    if len(one.updates) != len(other.updates) or not one.updates:
        return math.inf, "number of updates"
    differences = [
        (abs(a[key] - b.get(key, math.inf)) / max(1.0, abs(a[key])), key)
        for a, b in zip(one.updates, other.updates, strict=True)
        for key in keys
        if key in a
    ]
    return max(differences, default=(math.inf, "none logged"))


def _vllm(subject: Subject, stage: str, folder: Path) -> Line:
    check, expected = (
        f"{stage}: log-probabilities of vLLM and trainer",
        f"differ by {MOST_LOGP_DIFFERENCE} at most on average",
    )
    if find_spec("vllm") is None or not subject.gpus:
        return skipped(check, expected, "vLLM is not installed" if subject.gpus else "no GPU trains here")
    run = run_stage(subject, short_recipe(subject, stage, folder / f"{stage}-vllm", use_vllm=True))
    if run.error:
        return Line(check, expected, run.error, False)
    means = [update.get("sampling/sampling_logp_difference/mean") for update in run.updates]
    logged = [mean for mean in means if mean is not None]
    return Line(check, expected, f"mean {_numbers(means)}", bool(logged) and max(logged) <= MOST_LOGP_DIFFERENCE)


def memory_line(subject: Subject, recipe: Path, run: Done) -> Line:
    """The peak of a process against the plan of the same settings."""
    kind, memory = _gpu(subject)
    parallel = "zero3" if subject.gpus > 1 and find_spec("deepspeed") else "fsdp2" if subject.gpus > 1 else "single"
    target = Target(subject.gpus, kind, parallel, subject.data_dir, read_assumptions([]), memory=memory)
    planned = plan_training(recipe, target).peak
    peak = run.result.get("peak_gpu_memory_mib", {}).get("reserved", run.result["peak_memory_mib"]) * 2**20
    expected = f"at most {MEMORY_ROOM:g} × {planned / GIB:.2f} GiB planned"
    return Line(f"{recipe.stem}: peak memory", expected, f"{peak / GIB:.2f} GiB", peak <= MEMORY_ROOM * planned)


def _gpu(subject: Subject) -> tuple[str, float | None]:
    """A GPU kind of the plan's, and the memory of the GPUs that are here."""
    there = gpus() if subject.gpus else []
    named = next((kind for kind in GPUS if there and kind in there[0].name.lower()), "h100")
    return named, there[0].memory if there else None


def _numbers(values: list[Any]) -> str:
    return ", ".join("none" if value is None else f"{value:.6g}" for value in values)
