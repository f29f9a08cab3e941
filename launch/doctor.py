"""Is this machine ready? What each stage of a recipe needs, what is there, and the command that mends what is missing.

    python -m launch.doctor [--recipe unirg_cxr] [--stage sft] [--gpus 8] [--json]

Exit status: 0 the stage (without --stage: every stage, earlier stages' models left aside) can run here, 1 it cannot,
2 the question was wrong. Nothing is changed and no report is sent anywhere. Standard library at the top: it also runs
where nothing is installed yet.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import machine
from common.machine import GIB, MachineError, format_bytes
from launch.start import PARALLEL, default_parallel, generation_url, judge_place

STAGES = ("data", "sft", "rl_step1", "rl_step2", "eval")
REPOSITORY = Path(__file__).resolve().parent.parent
# TRL 1.16 refuses other versions of vLLM for generation in GRPO.
VLLM_RANGE = ((0, 22, 0), (0, 31, 0))
# Disk that a stage needs beside its checkpoints: data sets' prepared images, logs, predictions.
_SPARE_DISK = 5 * GIB
_TRAINING = ("sft", "rl_step1", "rl_step2")


@dataclass(frozen=True)
class Check:
    """One thing that stages need.

    Attributes:
        status: ok, missing (its stages cannot run) or warning (they can, with what `found` says).
        mend: the command or change that mends it; empty where nothing is to be mended.
        stages: those that need it.
    """

    name: str
    status: str
    found: str
    mend: str = ""
    stages: tuple[str, ...] = STAGES


@dataclass(frozen=True)
class Question:
    """What is asked: a recipe on this machine.

    Attributes:
        recipes: stage → the keys of its YAML (flat); no stage where PyYAML is not installed.
        stage: the one stage that is to run, or None for all.
        gpus: of those here that train, or None for all.
        variant: of the recipe: <stage>_<variant>.yaml in place of <stage>.yaml.
    """

    recipe: str
    recipes: dict[str, dict[str, Any]]
    stage: str | None
    gpus: int | None
    data_dir: Path
    weights_dir: Path
    run: Path
    network: bool = True
    variant: str = ""
    parallel: str | None = None

    @property
    def own_run(self) -> bool:
        """Whether the run is the recipe's (and variant's) own, whose stages start where the YAML says."""
        return self.run.name == "_".join(filter(None, (self.recipe, self.variant)))

    def asked(self, stages: tuple[str, ...]) -> tuple[str, ...]:
        """Those of `stages` that are asked about."""
        return tuple(stage for stage in stages if self.stage in (None, stage))

    def stages_where(self, key: str, *values: Any) -> tuple[str, ...]:
        """The asked stages whose YAML gives `key` one of `values`."""
        return tuple(stage for stage in self.asked(STAGES) if self.recipes.get(stage, {}).get(key) in values)


def check_recipe(question: Question) -> Iterator[Check]:
    """Each stage has its YAML."""
    for stage in question.asked(STAGES[1:]) if question.recipes else ():
        if stage not in question.recipes:
            name = yaml_name(stage, question.variant)
            found = f"recipes/{question.recipe} has no {name}, so no {stage}"
            yield Check(
                f"recipe of {stage}", "missing", found, "write it, or choose another RECIPE or VARIANT", (stage,)
            )


# ---- this machine -----------------------------------------------------------------------------------------------------


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


def check_gpus(question: Question) -> Iterator[Check]:
    """GPUs where the YAML does not say `use_cpu: true`: how many, how large, bfloat16, a torch built for them."""
    wanting = tuple(s for s in question.asked(_TRAINING) if question.recipes.get(s, {}).get("use_cpu") is not True)
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
    several = question.asked(_TRAINING) if (question.gpus or len(_gpus())) > 1 else ()
    if several and installed("deepspeed") is None:
        mend = ".venv/bin/pip install -r requirements-gpu.txt; or PARALLEL=fsdp2, which needs none"
        wanted = (question.parallel or "").startswith("zero")
        found = f"not installed; PARALLEL={question.parallel} needs it" if wanted else "not installed; ZeRO needs it"
        yield Check("DeepSpeed", "missing" if wanted else "warning", found, mend, several)


def _gpus() -> list[machine.Gpu]:
    """The GPUs, or none where the driver fails, which check_gpus says."""
    try:
        return machine.gpus()
    except MachineError:
        return []


def version_numbers(version: str) -> tuple[int, ...]:
    """The first three numbers of a version: `0.31.0rc1+cu130` is (0, 31, 0)."""
    return tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0])[:3])


def check_memory(question: Question) -> Iterator[Check]:
    """Memory of the machine, and shared memory, by which data loader workers hand over batches."""
    total = machine.memory_bytes()
    needed = 4 * GIB if all(r.get("use_cpu", True) for r in question.recipes.values()) else 64 * GIB
    if total < needed:
        yield Check("memory", "warning", f"{format_bytes(total)}; {format_bytes(needed)} is comfortable", "", _TRAINING)
    else:
        yield Check("memory", "ok", f"{format_bytes(total)}, {os.cpu_count()} CPU cores")
    shared = Path("/dev/shm")
    workers = tuple(s for s in question.asked(_TRAINING) if question.recipes.get(s, {}).get("dataloader_num_workers"))
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
    from common.errors import RecipeError

    memory = min((gpu.memory for gpu in _gpus() if gpu.memory is not None), default=None)
    for stage in question.asked(_TRAINING):
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
        needed = plan.checkpoint_bytes + plan.momentary_bytes + _SPARE_DISK
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
    from launch.planning.recipe import image_bytes

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


# ---- what the recipe reads --------------------------------------------------------------------------------------------


def _base_model(question: Question) -> str:
    return str(question.recipes.get("sft", {}).get("model_name_or_path", ""))


def check_base_model(question: Question) -> Iterator[Check]:
    """The model that SFT starts from: a folder, or a hub name that is in the weights folder or the hub's cache."""
    name = _base_model(question)
    stages = question.asked(("sft",))
    if not name or not stages:
        return
    local = next(
        (p for p in (Path(name), question.weights_dir / Path(name).name) if (p / "config.json").is_file()), None
    )
    if local is not None:
        size = sum(file.stat().st_size for file in local.glob("*.safetensors"))
        absent = missing_weights(local)
        unfinished = [] if absent else _unfinished(question.weights_dir, f"{local.name}/")
        if absent or unfinished:
            yield Check(
                "base model", "missing", f"{local}: {'; '.join([*absent, *unfinished][:3])}", "make weights", stages
            )
        else:
            fingerprint = _locked(question, local.name + "/")
            yield Check("base model", "ok", f"{local}, {format_bytes(size)}{fingerprint}", "", stages)
    elif question.recipe == "demo" or name.startswith("outputs/"):
        yield Check(
            "base model", "warning", f"{name} is not built yet; the stage builds it", "make base RECIPE=demo", stages
        )
    elif _in_hub_cache(name):
        yield Check("base model", "ok", f"{name}, in the hub's cache", "", stages)
    else:
        yield Check("base model", "missing", f"{name} is not on this machine", "make weights", stages)


def missing_weights(folder: Path) -> list[str]:
    """What a checkpoint lacks of its weights: the files that its index names, or `model.safetensors`."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [] if any(folder.glob("*.safetensors")) else ["no model.safetensors"]
    try:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        return [f"{index.name} is damaged ({error})"]
    return [f"{file} is not there" for file in files if not (folder / file).is_file()]


def _unfinished(folder: Path, prefix: str) -> list[str]:
    """What the lock file says of the files below `prefix`: a source that has not arrived as a whole, a file of other size."""
    from common.weights_lock import FetchError, problems, read_lock

    try:
        lock, found = read_lock(folder), [line for line in problems(folder) if line.startswith(prefix)]
    except FetchError as error:
        return [str(error)]
    arriving = {entry["repository"] for name, entry in lock.files.items() if name.startswith(prefix)}
    complete = {key.split(" ")[0] for key in lock.complete}
    return [*found, *(f"{name} has not arrived as a whole" for name in sorted(arriving - complete))]


def _in_hub_cache(name: str) -> bool:
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return False
    return name.count("/") == 1 and isinstance(try_to_load_from_cache(name, "config.json"), str)


def _locked(question: Question, prefix: str) -> str:
    from common.weights_lock import lock_fingerprint, read_lock

    if any(name.startswith(prefix) for name in read_lock(question.weights_dir).files):
        return f", fingerprint {lock_fingerprint(question.weights_dir, prefix)[:12]}"
    return ""


def check_metric_weights(question: Question) -> Iterator[Check]:
    """CheXbert, RadGraph and distilroberta where `reward_backend: real`; sizes as in the lock file."""
    stages = question.stages_where("reward_backend", "real")
    if not stages:
        if question.recipes and question.asked(("rl_step1", "rl_step2", "eval")):
            yield Check("metric weights", "ok", "none needed: the recipe scores with offline stand-ins")
        return
    from common.weights_lock import FetchError, lock_fingerprint, problems, read_lock
    from launch.weights import sources

    folder = question.weights_dir
    mend = f"make weights WEIGHTS_DIR={folder}"
    names = ("chexbert.pth", "bert-base-uncased/vocab.txt", "distilroberta-base/model.safetensors")
    missing = [name for name in names if not (folder / name).is_file()]
    if not (folder / "radgraph").is_dir() and not list(folder.glob("*radgraph*.tar.gz")):
        missing.append("radgraph.tar.gz")
    try:
        damaged = problems(folder)
        lock = read_lock(folder)
        locked = lock.files
    except FetchError as error:
        yield Check("metric weights", "missing", str(error), mend, stages)
        return
    if locked and not missing:
        metrics = sources(("chexbert", "bertscore", *(("radgraph",) if "radgraph.tar.gz" in locked else ())))
        damaged += [f"{s.repository} has not arrived as a whole" for s in metrics if s.key not in lock.complete]
    if missing or damaged:
        yield Check("metric weights", "missing", f"{folder}: " + "; ".join([*missing, *damaged][:4]), mend, stages)
    elif locked:
        yield Check("metric weights", "ok", f"{folder}, fingerprint {lock_fingerprint(folder)[:12]}", "", stages)
    else:
        yield Check("metric weights", "warning", f"{folder}: not fetched by make weights, sums unknown", mend, stages)


def check_ratescore(question: Question) -> Iterator[Check]:
    """RaTEScore's two models and its package, where the recipe watches it; elsewhere it is left out of the evaluation."""
    from rewards.weights import RATESCORE_MODELS

    folder = question.weights_dir
    lacking = [str(folder / name) for name in RATESCORE_MODELS if missing_weights(folder / name)]
    lacking += [] if installed("RaTEScore") else ["the package RaTEScore"]
    mend = f'make weights WEIGHTS_DIR={folder} ARGS="--only ratescore", and make setup'
    watching = question.stages_where("monitor_heldout", "ratescore")
    if watching:
        status = "missing" if lacking else "ok"
        yield Check("RaTEScore", status, ", ".join(lacking) or "there", mend if lacking else "", watching)
    elif question.stages_where("reward_backend", "real") and (stages := question.asked(("eval",))):
        found = f"{', '.join(lacking)}: not here, so it is left out of the scores" if lacking else "there"
        yield Check("RaTEScore (optional)", "warning" if lacking else "ok", found, mend if lacking else "", stages)


def check_data(question: Question) -> Iterator[Check]:
    """Each prepared data set that a stage of the recipe reads, with the split it reads."""
    reads: dict[tuple[str, str], list[str]] = {}
    for stage in question.asked(STAGES):
        values = question.recipes.get(stage, {})
        split = values.get("split", "test") if stage == "eval" else values.get("train_split", "train")
        for name in [*(values.get("datasets") or []), *(values.get("zero_shot_datasets") or [])]:
            reads.setdefault((name, split), []).append(stage)
    for (name, split), stages in reads.items():
        status, found, mend = _table(question.data_dir / name, split)
        yield Check(f"data {name}/{split}", status, found, mend, tuple(stages))


def _table(folder: Path, split: str) -> tuple[str, str, str]:
    """Status, what was found and what mends it, of one split of a prepared folder."""
    path, name = folder / f"{split}.parquet", folder.name
    mend = f"make data DATASET={name} SOURCE=/path/to/{name}"
    if name.startswith("phantom_"):
        mend = "make demo-data RECIPE=demo"
    if not path.is_file():
        return "missing", f"no {path}", mend
    import pyarrow
    import pyarrow.parquet as pq

    try:
        rows = pq.read_metadata(path).num_rows
    except (pyarrow.ArrowInvalid, OSError) as error:
        return "missing", f"{path} cannot be read: {error}", f"{mend} FORCE=1"
    if rows == 0 and split == "test":
        return "warning", "no studies; its validation split is evaluated instead", ""
    return ("ok", f"{rows:,} studies", "") if rows else ("missing", f"{path} has no studies", mend)


def check_earlier_stage(question: Question) -> Iterator[Check]:
    """The model of the stage before, where one stage is asked about."""
    if question.stage not in ("rl_step1", "rl_step2"):
        return
    name = str(question.recipes.get(question.stage, {}).get("model_name_or_path", ""))
    if not question.own_run:
        name = str(question.run / ("sft/final" if question.stage == "rl_step1" else "rl_step1/best"))
    mend = f"make {'sft' if question.stage == 'rl_step1' else 'rl-step1'} RECIPE={question.recipe}"
    mend += f" VARIANT={question.variant}" if question.variant else ""
    mend += "" if question.own_run else f" RUN={question.run.name}"
    if (Path(name) / "config.json").is_file():
        yield Check("earlier stage", "ok", name, "", (question.stage,))
    else:
        yield Check("earlier stage", "missing", f"no model in {name}", mend, (question.stage,))


def check_judge(question: Question) -> Iterator[Check]:
    """The judge answers a listing of its models: one call, no report in it."""
    for stage in question.asked(("rl_step2", "eval")):
        values = question.recipes.get(stage, {})
        url = values.get("judge_base_url")
        if not url:
            continue
        if url == "offline":
            yield Check(
                f"judge of {stage}", "ok", "offline: the rule-based stand-in, started by the stage", "", (stage,)
            )
            continue
        try:
            import asyncio

            from common.governance import JudgeError
            from rewards.chexprompt.judge import Judge, JudgeSettings

            settings = JudgeSettings.from_mapping(dict(values) | {"judge_cache_dir": None, "judge_max_retries": 0})
            with Judge.from_settings(settings) as judge:
                asyncio.run(judge.check())
        except ImportError as error:
            yield Check(f"judge of {stage}", "missing", f"not asked: {error}", "make setup", (stage,))
        except JudgeError as error:
            mend = f"make judge-server JUDGE_MODEL={values.get('judge_model')}, or JUDGE_URL=…"
            if stage == "rl_step2" and (count := len(_gpus())) and values.get("use_cpu") is not True:
                mend = judge_place(values, min(question.gpus or count, count))
            yield Check(f"judge of {stage}", "missing", str(error), mend, (stage,))
        else:
            yield Check(f"judge of {stage}", "ok", f"{values.get('judge_model')} at {url}", "", (stage,))


def check_judge_weights(question: Question) -> Iterator[Check]:
    """The weights of a judge that is served from this machine: what `make judge-server` takes, complete or not."""
    from common.governance import is_loopback

    values = question.recipes.get("rl_step2", {})
    url, model = str(values.get("judge_base_url") or ""), str(values.get("judge_model") or "")
    host = urllib.parse.urlsplit(url).hostname or ""
    if not question.asked(("rl_step2",)) or not is_loopback(host) or model.count("/") != 1:
        return
    folder = question.weights_dir / model.split("/")[1]
    mend = f'make weights WEIGHTS_DIR={question.weights_dir} ARGS="--only judge --judge_model {model}"'
    if not (folder / "config.json").is_file():
        found = f"not in {folder}: make judge-server would fetch {model} from the hub when it starts"
        yield Check("judge's weights", "warning", found, mend, ("rl_step2",))
    elif lacking := missing_weights(folder):
        yield Check("judge's weights", "missing", f"{folder}: {'; '.join(lacking[:4])}", mend, ("rl_step2",))
    else:
        yield Check("judge's weights", "ok", f"{folder}{_locked(question, folder.name + '/')}", "", ("rl_step2",))


def check_hub(question: Question) -> Iterator[Check]:
    """Access to the hub, which only `make weights` needs."""
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if not question.network or os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        yield Check("hub", "ok", "not asked (offline mode)")
        return
    try:
        request = urllib.request.Request(f"{endpoint}/api/models?limit=1", headers={"User-Agent": "unirg-recipes"})
        urllib.request.urlopen(request, timeout=5).close()
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        mend = "make weights MIRROR=https://… or copy a weights folder here (WEIGHTS_DIR=)"
        yield Check("hub", "warning", f"{endpoint} does not answer ({reason}); make weights needs it", mend)
    else:
        yield Check("hub", "ok", f"{endpoint} answers")


def check_generation_server(question: Question) -> Iterator[Check]:
    """The vLLM server that the YAML wants rollouts from lists its models."""
    for stage in question.stages_where("vllm_mode", "server"):
        url = generation_url(question.recipes[stage])
        if url is None:
            continue
        try:
            models = machine.served_models(f"{url}/v1")
        except MachineError as error:
            yield Check("generation server", "missing", str(error), "make vllm-server", (stage,))
        else:
            yield Check("generation server", "ok", f"{url}: {', '.join(models or ['wants a key'])}", "", (stage,))


CHECKS: tuple[Callable[[Question], Iterator[Check]], ...] = (
    check_python,
    check_packages,
    check_recipe,
    check_gpus,
    check_gpu_packages,
    check_memory,
    check_plan,
    check_base_model,
    check_metric_weights,
    check_ratescore,
    check_data_disk,
    check_data,
    check_earlier_stage,
    check_judge,
    check_judge_weights,
    check_generation_server,
    check_hub,
)


def examine(question: Question) -> list[Check]:
    """All checks of one question, in order."""
    checks = []
    for function in CHECKS:
        try:
            checks.extend(function(question))
        except ModuleNotFoundError as error:  # nothing, or not all, is installed yet
            name = function.__name__.removeprefix("check_").replace("_", " ")
            checks.append(Check(name, "missing", f"not looked at: {error}", "make setup"))
    return checks


def can_run(checks: list[Check], stage: str) -> bool:
    """Whether nothing that `stage` needs is missing."""
    return not any(check.status == "missing" and stage in check.stages for check in checks)


def yaml_name(stage: str, variant: str = "") -> str:
    """File of a stage; the evaluation is looked at without its variants, which ask nothing else of a machine."""
    return f"{stage}_{variant}.yaml" if variant and stage in _TRAINING else f"{stage}.yaml"


def read_recipe(recipe: str, variant: str = "") -> dict[str, dict[str, Any]]:
    """Stage → YAML keys of a recipe; without PyYAML (nothing installed yet) no stage.

    Raises:
        MachineError: no such recipe or variant, or a file that is no YAML mapping.
    """
    folder = REPOSITORY / "recipes" / recipe
    known = sorted(path.parent.name for path in (REPOSITORY / "recipes").glob("*/*.yaml"))
    if recipe not in known:
        raise MachineError(f"no recipe {recipe!r}; one of {', '.join(sorted(set(known)))}")
    if variant and not any((folder / yaml_name(stage, variant)).is_file() for stage in _TRAINING):
        stages = [path.stem for stage in _TRAINING for path in sorted(folder.glob(f"{stage}_*.yaml"))]
        raise MachineError(f"recipe {recipe} has no variant {variant!r}; it has {', '.join(stages) or 'none'}")
    try:
        import yaml
    except ImportError:
        return {}
    recipes = {}
    for stage in STAGES:
        path = folder / yaml_name(stage, variant)
        if path.is_file():
            try:
                recipes[stage] = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (ValueError, RecursionError, yaml.YAMLError) as error:
                raise MachineError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from error
            if not isinstance(recipes[stage], dict):
                raise MachineError(f"{path} must hold a mapping of keys to values")
    return recipes


def table(checks: list[Check]) -> str:
    """The checks for a screen: status, name, what was found, and below it what mends it."""
    marks = {"ok": "ok     ", "missing": "MISSING", "warning": "warning"}
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{marks[check.status]}  {check.name:<{width}}  {check.found}")
        if check.mend and check.status != "ok":
            lines.append(f"{'':7}  {'':<{width}}  → {check.mend}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = machine.OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m launch.doctor"
    )
    parser.add_argument("--recipe", default="unirg_cxr", help="folder under recipes/")
    parser.add_argument("--stage", choices=STAGES, help="the stage that is to run; default: all")
    parser.add_argument("--variant", default="", help="of the recipe: <stage>_<variant>.yaml, e.g. lora")
    parser.add_argument("--gpus", type=int, help="GPUs that are to train; default: all")
    parser.add_argument(
        "--parallel", choices=PARALLEL, help="how the model is spread over them; default: zero3 or fsdp2"
    )
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--weights_dir", type=Path, default=Path(os.environ.get("WEIGHTS_DIR", "weights")))
    parser.add_argument("--run", type=Path, help="the run's folder; default: outputs/<recipe>")
    parser.add_argument("--judge_base_url", help="a judge other than the YAML's")
    parser.add_argument("--no-network", action="store_true", help="do not ask the hub")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    try:
        if given.gpus is not None and given.gpus < 0:
            raise MachineError(f"--gpus {given.gpus}: it must be at least 0")
        recipes = read_recipe(given.recipe, given.variant)
    except MachineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.judge_base_url:
        for stage in ("rl_step2", "eval"):
            if stage in recipes:
                recipes[stage]["judge_base_url"] = given.judge_base_url
    run = given.run or Path("outputs") / "_".join(filter(None, (given.recipe, given.variant)))
    question = Question(
        given.recipe,
        recipes,
        given.stage,
        given.gpus,
        given.data_dir,
        given.weights_dir,
        run,
        not given.no_network,
        given.variant,
        given.parallel,
    )
    checks = examine(question)
    ready = {stage: can_run(checks, stage) for stage in question.asked(STAGES)}
    if given.json:
        print(json.dumps({"recipe": given.recipe, "checks": [asdict(c) for c in checks], "can_run": ready}, indent=1))
    else:
        print(table(checks))
        print()
        print(" · ".join(f"{stage}: {'ready' if good else 'not ready'}" for stage, good in ready.items()))
    return 0 if all(ready.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
