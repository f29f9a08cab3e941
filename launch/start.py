"""Start a training stage on what there is: checked first, then handed over to torchrun or accelerate.

    python -m launch.start [--gpus 8] [--nodes 1] [--parallel zero3] -- -m recipes.sft --config recipes/…/sft.yaml …

CPU recipes run as one process or, with `--processes`, as torchrun's; one GPU as plain Python; several GPUs by
`accelerate launch` with launch/accelerate/<parallel>.yaml. Over several nodes NODE_RANK, MASTER_ADDR and MASTER_PORT
come from the environment. What cannot work ends in one line (exit status 2) before a model is loaded.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from launch import machine
from launch.machine import MachineError, format_bytes
from launch.models import checkpoint_bytes, parameter_count

CONFIGS = Path(__file__).resolve().parent / "accelerate"
PARALLEL = ("ddp", "zero2", "zero3", "fsdp2")
_DEFAULT_PORT = 29500  # torch.distributed's


def settings_of(command: Sequence[str]) -> dict[str, Any]:
    """The YAML keys of a stage's command, overridden by its `--key value` flags. Values of flags stay text.

    Raises:
        MachineError: the YAML cannot be read.
    """
    import yaml

    settings: dict[str, Any] = {}
    flags = [index for index, word in enumerate(command) if word.startswith("--")]
    for index in flags:
        name, _, value = command[index][2:].partition("=")
        following = command[index + 1] if index + 1 < len(command) else ""
        value = value or following
        if name == "config":
            try:
                settings = (yaml.safe_load(Path(value).read_text(encoding="utf-8")) or {}) | settings
            except (OSError, yaml.YAMLError) as error:
                raise MachineError(f"cannot read the recipe {value}: {' '.join(str(error).split())}") from error
        else:
            settings[name] = value
    return settings


def is_true(value: Any) -> bool:
    """YAML's true, or a flag's."""
    return value is True or str(value).lower() in ("true", "1", "yes")


def check_batch(settings: dict[str, Any], processes: int) -> None:
    """Raise `MachineError` unless the global batch divides by what the processes hold at once."""
    if not settings.get("global_batch_size"):
        return
    batch = int(settings["global_batch_size"])
    rollouts = int(settings.get("num_generations") or 1)
    rows = batch * (rollouts if settings.get("batch_counts", "prompts") == "prompts" else 1)
    each = int(settings.get("per_device_train_batch_size") or 8)
    if rows % (each * processes):
        fitting = [n for n in range(1, 65) if rows % (each * n) == 0]
        below = max((n for n in fitting if n < processes), default=1)
        raise MachineError(
            f"a batch of {rows} rows does not divide by {processes} processes × {each} rows (per_device_train_batch_size); "
            f"use GPUS={below}, or change per_device_train_batch_size or global_batch_size"
        )


def check_disk(settings: dict[str, Any]) -> None:
    """Raise `MachineError` unless one checkpoint and the final model have room where they are to be written."""
    parameters = parameter_count(str(settings.get("model_name_or_path", "")))
    if parameters is None:
        return
    known = {key: is_true(settings.get(key)) for key in ("use_peft", "save_only_model")} | {
        "dtype": settings.get("dtype")
    }
    needed = checkpoint_bytes(parameters, known) + checkpoint_bytes(parameters, known | {"save_only_model": True})
    folder = Path(str(settings.get("output_dir", "outputs")))
    free = machine.free_disk(folder)
    if free < needed:
        raise MachineError(
            f"{folder} has {format_bytes(free)} free, a checkpoint and the final model need {format_bytes(needed)}; make "
            'room, or ARGS="--output_dir /other/disk/…", or ARGS="--save_only_model true"'
        )


def check_gpus(gpus: int, recipe: str) -> None:
    """Raise `MachineError` unless this machine has so many GPUs."""
    there = machine.gpus()
    if not there:
        raise MachineError(
            f"{recipe} trains on GPUs and none is here; try the CPU demo (make demo), or see what is missing: make doctor"
        )
    if gpus > len(there):
        raise MachineError(f"{gpus} GPUs asked for, {len(there)} here; use GPUS={len(there)}")


def master_port(nodes: int) -> int:
    """MASTER_PORT, or on one node, where it is not given, any free one.

    Raises:
        MachineError: the port is in use, or is no port.
    """
    given = os.environ.get("MASTER_PORT")
    if given is None and nodes == 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]
    text = given or str(_DEFAULT_PORT)
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise MachineError(f"MASTER_PORT is {text!r}; it must be from 1 to 65535")
    if os.environ.get("NODE_RANK", "0") == "0" and not machine.port_is_free(int(text), ""):
        raise MachineError(f"port {text} is in use on this machine; choose another: MASTER_PORT={int(text) + 1}")
    return int(text)


def default_parallel() -> str:
    """zero3 where DeepSpeed is installed, else fsdp2, which shards as much."""
    return "zero3" if find_spec("deepspeed") else "fsdp2"


def build(gpus: int | None, nodes: int, parallel: str | None, processes: int, stage: list[str]) -> list[str]:
    """The command that runs `stage` (`-m recipes.sft …`), checked against this machine.

    Raises:
        MachineError: it cannot run so.
    """
    settings = settings_of(stage)
    if is_true(settings.get("use_cpu")):
        check_batch(settings, processes)
        check_disk(settings)
        if processes == 1:
            return [sys.executable, *stage]
        return [sys.executable, "-m", "launch.torchrun", "--standalone", "--nproc_per_node", str(processes), *stage]
    gpus = gpus if gpus is not None else max(1, len(machine.gpus()))
    check_gpus(gpus, str(settings.get("config", stage[1] if len(stage) > 1 else "this stage")))
    check_batch(settings, gpus * nodes)
    check_disk(settings)
    if gpus * nodes == 1:
        return [sys.executable, *stage]
    parallel = parallel or default_parallel()
    if parallel.startswith("zero") and find_spec("deepspeed") is None:
        raise MachineError(
            f"PARALLEL={parallel} needs DeepSpeed: .venv/bin/pip install -r requirements-gpu.txt; or PARALLEL=fsdp2"
        )
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{parallel}.yaml")]
    command += ["--num_processes", str(gpus * nodes), "--num_machines", str(nodes)]
    command += ["--main_process_port", str(master_port(nodes))]
    if nodes > 1:
        for name in ("NODE_RANK", "MASTER_ADDR"):
            if name not in os.environ:
                raise MachineError(
                    f"NODES={nodes} needs {name} in the environment; under Slurm use launch/slurm/*.sbatch"
                )
        command += ["--machine_rank", os.environ["NODE_RANK"], "--main_process_ip", os.environ["MASTER_ADDR"]]
    print(f"{gpus * nodes} GPUs, {parallel}", flush=True)
    return [*command, *stage]


def main(arguments: list[str] | None = None) -> int:
    parser = machine.OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m launch.start"
    )
    parser.add_argument("--gpus", type=int, help="GPUs of this node; default: all")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--parallel", choices=PARALLEL, help="default: zero3 where DeepSpeed is, else fsdp2")
    parser.add_argument("--processes", type=int, default=1, help="of a CPU recipe")
    parser.add_argument("--dry-run", action="store_true", help="print the command only")
    parser.add_argument("stage", nargs=argparse.REMAINDER, help="-- -m recipes.sft --config …")
    given = parser.parse_args(arguments)
    stage = given.stage[1:] if given.stage[:1] == ["--"] else given.stage
    if stage[:1] != ["-m"]:
        parser.error("give the stage after --, e.g. -- -m recipes.sft --config recipes/demo/sft.yaml")
    try:
        for name in ("gpus", "nodes", "processes"):
            if getattr(given, name) is not None and getattr(given, name) < 1:
                raise MachineError(f"--{name} {getattr(given, name)}: it must be at least 1")
        command = build(given.gpus, given.nodes, given.parallel, given.processes, stage)
    except MachineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.dry_run:
        print(" ".join(command))
        return 0
    os.execv(command[0], command)  # signals reach the launcher itself


if __name__ == "__main__":
    raise SystemExit(main())
