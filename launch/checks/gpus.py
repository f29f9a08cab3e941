"""Are there GPUs, and do the stages fit this machine's GPUs, memory and disk?"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foundation import machine
from foundation.machine import GIB, MachineError, format_bytes
from foundation.provenance import REPOSITORY
from launch.checks.packages import installed
from launch.checks.question import STAGES, TRAINING, Check, Question, yaml_name
from launch.processes import default_parallel

# Disk that a stage needs beside its checkpoints: data sets' prepared images, logs, predictions.
SPARE_DISK = 5 * GIB

# TRL 1.16 refuses other versions of vLLM for generation in GRPO.
VLLM_RANGE = ((0, 22, 0), (0, 31, 0))


def check_gpus(question: Question) -> Iterator[Check]:
    """GPUs where the YAML does not say `use_cpu: true`: how many, how large, bfloat16, a torch built for them."""
    wanting = tuple(s for s in question.asked(TRAINING) if question.recipes.get(s, {}).get("use_cpu") is not True)
    try:
        gpus = machine.gpus()
    except MachineError as error:
        yield Check("GPUs", "missing", str(error), "nvidia-smi", wanting)
        return
    if not gpus:
        status, mend = ("missing", "use a machine with NVIDIA GPUs; without one: make demo") if wanting else ("ok", "")
        yield Check("GPUs", status, "none" if wanting else "none, none needed", mend, wanting or STAGES)
        return
    names = sorted({gpu.name for gpu in gpus})
    sizes = [gpu.memory for gpu in gpus if gpu.memory is not None]
    size = f"{format_bytes(min(sizes))} each" if sizes else "memory not known"
    yield Check("GPUs", "ok", f"{len(gpus)} × {' / '.join(names)}, {size}")
    if question.gpus and question.gpus > len(gpus):
        yield Check("GPUS=", "missing", f"{question.gpus} asked for, {len(gpus)} here", f"GPUS={len(gpus)}", wanting)
    capability = min((gpu.compute_capability for gpu in gpus if gpu.compute_capability is not None), default=8.0)
    bfloat = tuple(stage for stage in wanting if question.recipes.get(stage, {}).get("bf16"))
    if bfloat and capability < 8.0:
        mend = 'ARGS="--bf16 false --fp16 true --dtype float32", or a GPU from Ampere on'
        yield Check("bfloat16", "missing", f"compute capability {capability}; bf16 needs 8.0", mend, bfloat)
    version = installed("torch")
    if version and "+cpu" in version:
        mend = f"install torch {version.split('+')[0]} built for CUDA into .venv (pytorch.org, Get started)"
        yield Check("CUDA", "missing", f"torch {version} is built for CPUs", mend, wanting)
    elif version:
        yield from _check_cuda(wanting, len(gpus))


def _check_cuda(stages: tuple[str, ...], count: int) -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        yield Check("CUDA", "ok", f"{torch.version.cuda}, torch sees {torch.cuda.device_count()} GPU(s)", "", stages)
    else:
        found = f"torch (CUDA {torch.version.cuda}) sees none of the {count} GPUs"
        yield Check("CUDA", "missing", found, "update the NVIDIA driver to one for this CUDA version", stages)


def _gpus() -> list[machine.Gpu]:
    """The GPUs, or none where the driver fails, which check_gpus says."""
    try:
        return machine.gpus()
    except MachineError:
        return []


def check_memory(question: Question) -> Iterator[Check]:
    """Memory of the machine, and shared memory, by which data loader workers hand over batches."""
    total = machine.memory_bytes()
    needed = 4 * GIB if all(r.get("use_cpu", True) for r in question.recipes.values()) else 64 * GIB
    if total < needed:
        yield Check("memory", "warning", f"{format_bytes(total)}; {format_bytes(needed)} is comfortable", "", TRAINING)
    else:
        yield Check("memory", "ok", f"{format_bytes(total)}, {os.cpu_count()} CPU cores")
    shared = Path("/dev/shm")
    workers = tuple(s for s in question.asked(TRAINING) if question.recipes.get(s, {}).get("dataloader_num_workers"))
    if workers and shared.is_dir() and machine.free_disk(shared) < GIB:
        found = f"{format_bytes(machine.free_disk(shared))} free in /dev/shm"
        yield Check(
            "shared memory",
            "warning",
            found,
            'start the container with --shm-size=16g, or ARGS="--dataloader_num_workers 0"',
            workers,
        )


def planned(question: Question, stage: str) -> Any:
    """The stage as `make plan` has it, on this machine's GPUs (without: on a CPU); None where it has no YAML.

    Raises:
        RecipeError: the YAML is wrong, or its batch does not divide.
    """
    from launch.planning.assumed import Assumptions, Target
    from launch.planning.stage import plan_training

    if stage not in question.recipes:
        return None
    here = [] if question.recipes[stage].get("use_cpu") is True else _gpus()
    count = min(question.gpus or len(here), len(here))
    parallel = (question.parallel or default_parallel()) if count > 1 else "single"
    memory = min((gpu.memory for gpu in here if gpu.memory is not None), default=None)
    target = Target(count, "h100", parallel, question.data_dir, Assumptions(), memory=memory)
    path = REPOSITORY / "recipes" / question.recipe / yaml_name(stage, question.variant)
    return plan_training(path, target)


def check_plan(question: Question) -> Iterator[Check]:
    """What the stage is planned to need, as `make plan` counts it: memory of a GPU, and disk for what it keeps."""
    from foundation.errors import RecipeError

    memory = min((gpu.memory for gpu in _gpus() if gpu.memory is not None), default=None)
    for stage in question.asked(TRAINING):
        try:
            plan = planned(question, stage)
        except RecipeError as error:
            yield Check(f"plan of {stage}", "missing", str(error), "change the YAML, or see make plan", (stage,))
            continue
        if plan is None:
            continue
        if memory is not None and plan.memory and question.recipes[stage].get("use_cpu") is not True:
            found = f"{format_bytes(plan.peak)} planned of {format_bytes(memory)}"
            status, mend = ("ok", "") if plan.fits else ("missing", "; or ".join(plan.advice[1:]) or "make plan")
            yield Check(f"GPU memory for {stage}", status, found, mend, (stage,))
        for line in plan.advice:
            if "stops the stage" in line:
                yield Check(f"judge's limits of {stage}", "warning", line, "", (stage,))
        folder = (
            question.run if not question.own_run else Path(str(question.recipes[stage].get("output_dir", question.run)))
        )
        free = machine.free_disk(folder)
        needed = plan.checkpoint_bytes + plan.momentary_bytes + SPARE_DISK
        found = f"{format_bytes(free)} free at {folder}; {plan.checkpoints} checkpoint(s) and the final model take "
        found += format_bytes(plan.checkpoint_bytes)
        if plan.momentary_bytes:
            found += f", and {format_bytes(plan.momentary_bytes)} more while one is written"
        mend = 'make room, another disk (OUTPUTS_DIR=/big/disk, for every make), or ARGS="--save_only_model true --save_total_limit 1"'
        status = "missing" if free < needed else "ok"
        yield Check(f"disk for {stage}", status, found, mend if free < needed else "", (stage,))


def check_data_disk(question: Question) -> Iterator[Check]:
    """Room for the images of the data sets that are not prepared yet."""
    if not question.asked(("data",)):
        return
    from launch.planning.assumed import Assumptions
    from launch.planning.studies import image_bytes

    names = {name for values in question.recipes.values() for name in values.get("datasets") or []}
    absent = sorted(name for name in names if not any((question.data_dir / name).glob("*.parquet")))
    needed, free = image_bytes(absent, question.data_dir, Assumptions()), machine.free_disk(question.data_dir)
    found = f"{format_bytes(free)} free at {question.data_dir}"
    if not absent:
        yield Check("disk for data", "ok", f"{found}; all is prepared", "", ("data",))
    elif free < needed:
        mend = "make room, or another disk: DATA=/other/disk/data"
        found = f"{found}; images of {', '.join(absent)} take {format_bytes(needed)}"
        yield Check("disk for data", "missing", found, mend, ("data",))
    else:
        yield Check("disk for data", "ok", f"{found}, {format_bytes(needed)} at most are needed", "", ("data",))


def check_gpu_packages(question: Question) -> Iterator[Check]:
    """vLLM in TRL's range where the YAML generates with it; DeepSpeed where several GPUs train."""
    with_vllm = question.stages_where("use_vllm", True)
    version = installed("vllm")
    if with_vllm:
        low, high = (".".join(map(str, bound)) for bound in VLLM_RANGE)
        mend = ".venv/bin/pip install -r requirements-gpu.txt"
        if version is None:
            mend += '; or slower, without: ARGS="--use_vllm false"'
            yield Check("vLLM", "missing", f"not installed; TRL takes {low} to {high}", mend, with_vllm)
        elif not VLLM_RANGE[0] <= version_numbers(version) <= VLLM_RANGE[1]:
            yield Check("vLLM", "missing", f"{version}; TRL takes {low} to {high}", mend, with_vllm)
        else:
            yield Check("vLLM", "ok", version, "", with_vllm)
    several = question.asked(TRAINING) if (question.gpus or len(_gpus())) > 1 else ()
    if several and installed("deepspeed") is None:
        mend = ".venv/bin/pip install -r requirements-gpu.txt; or PARALLEL=fsdp2, which needs none"
        wanted = (question.parallel or "").startswith("zero")
        found = f"not installed; PARALLEL={question.parallel} needs it" if wanted else "not installed; ZeRO needs it"
        yield Check("DeepSpeed", "missing" if wanted else "warning", found, mend, several)


def version_numbers(version: str) -> tuple[int, ...]:
    """The first three numbers of a version: `0.31.0rc1+cu130` is (0, 31, 0)."""
    return tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0])[:3])
