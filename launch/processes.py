"""The processes that train a stage: checked against this machine first, then a command for torchrun.

CPU recipes run as one process or, with `--processes`, as torchrun's; one GPU as plain Python; several GPUs as torchrun's
with the settings of launch/accelerate/<parallel>.yaml. Over several nodes NODE_RANK, MASTER_ADDR and MASTER_PORT come
from the environment. What cannot work is a `MachineError` before a model is loaded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from foundation import machine
from foundation.governance import JudgeError, host_of, is_loopback
from foundation.machine import MachineError, format_bytes
from foundation.stage_command import is_true, settings_of, whole_number
from model.architectures import checkpoint_bytes, parameter_count

CONFIGS = Path(__file__).resolve().parent / "accelerate"
PARALLEL = ("ddp", "zero2", "zero3", "fsdp2")
_DEFAULT_PORT = 29500  # torch.distributed's
_JUDGE_URL = "http://127.0.0.1:8000/v1"  # where a YAML gives none (rewards/chexprompt/judge.py)


def batch_rows(settings: Mapping[str, Any]) -> int | None:
    """Rows of one optimiser step over all processes; None where the settings give no global batch.

    Raises:
        MachineError: a value that is no whole number above 0.
    """
    if settings.get("global_batch_size") is None:
        return None
    batch, rollouts = whole_number(settings, "global_batch_size", 1), whole_number(settings, "num_generations", 1)
    return batch * (rollouts if settings.get("batch_counts", "prompts") == "prompts" else 1)


def fitting_processes(settings: Mapping[str, Any]) -> list[int]:
    """Up to 1,024: numbers of processes by whose rows the batch divides; all where there is no global batch."""
    rows, each = batch_rows(settings), whole_number(settings, "per_device_train_batch_size", 8)
    return [n for n in range(1, 1025) if rows is None or rows % (each * n) == 0]


def check_batch(settings: Mapping[str, Any], per_node: int, nodes: int = 1, variable: str = "GPUS") -> None:
    """Raise `MachineError` unless the global batch divides by what the processes hold at once.

    Args:
        variable: of make, that says how many processes a node has.
    """
    rows, each = batch_rows(settings), whole_number(settings, "per_device_train_batch_size", 8)
    fitting = fitting_processes(settings)
    if rows is None or per_node * nodes in fitting:
        return
    shown = f"{per_node * nodes} processes" if nodes == 1 else f"{nodes} nodes × {per_node} processes"
    fewer = [n for n in range(1, per_node) if n * nodes in fitting]
    fewer_nodes = [n for n in range(1, nodes) if n * per_node in fitting]
    use = ""
    if fewer:
        use = f"use {variable}={fewer[-1]}{' (of each node)' if nodes > 1 else ''}, or "
    elif fewer_nodes:
        use = f"use NODES={fewer_nodes[-1]}, or "
    raise MachineError(
        f"a batch of {rows} rows does not divide by {shown} × {each} rows (per_device_train_batch_size); "
        f"{use}change per_device_train_batch_size or global_batch_size"
    )


def check_disk(settings: dict[str, Any]) -> None:
    """Raise `MachineError` unless one checkpoint and the final model have room where they are to be written."""
    parameters = parameter_count(str(settings.get("model_name_or_path", "")))
    if parameters is None:
        return
    known = {key: is_true(settings.get(key)) for key in ("use_peft", "save_only_model")} | {
        "dtype": settings.get("dtype")
    }
    whole = {"dtype": known["dtype"], "save_only_model": True}  # an adapter is merged at the end
    needed = checkpoint_bytes(parameters, known) + checkpoint_bytes(parameters, whole)
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


def judge_url(settings: Mapping[str, Any]) -> str | None:
    """The address of the judge that a stage asks on this machine; None for no judge, the stand-in, or another machine's.

    Raises:
        MachineError: the address is none.
    """
    try:
        weight = float(settings.get("weight_chexprompt") or 0)
    except ValueError:
        raise MachineError(f"weight_chexprompt is {settings['weight_chexprompt']!r}; it must be a number") from None
    if not weight or settings.get("judge_base_url") == "offline":
        return None
    url = str(settings.get("judge_base_url") or _JUDGE_URL)
    try:
        return url if is_loopback(host_of(url)) else None
    except JudgeError as error:
        raise MachineError(str(error)) from error


def check_judge(settings: Mapping[str, Any], gpus: int, recipe: str) -> None:
    """Raise `MachineError` unless the judge answers that is asked on this machine: it needs GPUs that do not train."""
    url = judge_url(settings)
    if url is None:
        return
    try:
        machine.served_models(url)
    except MachineError as error:
        taken = ", and all GPUs here train" if gpus >= len(machine.all_gpus()) else ""
        raise MachineError(f"{recipe} asks a judge: {error}{taken}; {judge_place(settings, gpus)}") from error


def judge_place(settings: Mapping[str, Any], gpus: int) -> str:
    """Where a judge can run beside a stage that is to train on `gpus` of this machine's GPUs: commands for a person."""
    total = max(gpus, len(machine.all_gpus()))
    elsewhere = "name a judge on another machine: JUDGE_URL=http://HOST:8001/v1"
    if total == 1:
        return f"the only GPU here trains; {elsewhere}"
    train = min(gpus, max((n for n in fitting_processes(settings) if n < total), default=1))
    training, judging = (",".join(map(str, part)) for part in (range(train), range(train, total)))
    return (
        f"keep GPUs for it: CUDA_VISIBLE_DEVICES={judging} DATA_PARALLEL={total - train} make judge-server, and train "
        f"with CUDA_VISIBLE_DEVICES={training} GPUS={train}; or {elsewhere}"
    )


def generation_url(settings: Mapping[str, Any]) -> str | None:
    """The address of the vLLM server that makes a stage's rollouts, as TRL reads it; None where there is no such server."""
    if not is_true(settings.get("use_vllm")) or settings.get("vllm_mode") != "server":
        return None
    host = str(settings.get("vllm_server_host") or "0.0.0.0").replace("0.0.0.0", "127.0.0.1")
    return str(
        settings.get("vllm_server_base_url") or f"http://{host}:{settings.get('vllm_server_port') or 8000}"
    ).rstrip("/")


def check_generation_server(settings: Mapping[str, Any]) -> None:
    """Raise `MachineError` unless the vLLM server of the rollouts answers, and the port of the weight push is free here."""
    url = generation_url(settings)
    if url is None:
        return
    try:
        machine.served_models(f"{url}/v1")
    except MachineError as error:
        raise MachineError(f"vllm_mode is server: {error}; start it on GPUs of its own: make vllm-server") from error
    # The first process listens on it, the server connects.
    port = whole_number(settings, "vllm_group_port", 51216)
    if os.environ.get("NODE_RANK", "0") == "0" and not machine.port_is_free(port, ""):
        raise MachineError(
            f"port {port} (vllm_group_port, of the weight push) is in use here; choose another: "
            f'ARGS="--vllm_group_port {port + 1}"'
        )


def rendezvous(nodes: int) -> list[str]:
    """torchrun's words for where its processes meet: on one node a free port, unless MASTER_PORT is given.

    Raises:
        MachineError: a port that is in use or is none, or NODE_RANK or MASTER_ADDR that several nodes need.
    """
    given = os.environ.get("MASTER_PORT")
    if given is None and nodes == 1:
        return ["--standalone"]
    text = given or str(_DEFAULT_PORT)
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise MachineError(f"MASTER_PORT is {text!r}; it must be from 1 to 65535")
    rank, address = os.environ.get("NODE_RANK", "0"), os.environ.get("MASTER_ADDR", "127.0.0.1")
    if nodes > 1:
        for name in ("NODE_RANK", "MASTER_ADDR"):
            if name not in os.environ:
                raise MachineError(
                    f"NODES={nodes} needs {name} in the environment; under Slurm use launch/slurm/*.sbatch"
                )
        if not rank.isdigit() or int(rank) >= nodes:
            raise MachineError(f"NODE_RANK is {rank!r}; with NODES={nodes} it is a number from 0 to {nodes - 1}")
    if int(rank) == 0 and not machine.port_is_free(int(text), ""):
        raise MachineError(f"port {text} is in use on this machine; choose another: MASTER_PORT={int(text) + 1}")
    where = {"nnodes": nodes, "node_rank": rank, "master_addr": address, "master_port": text}
    return [word for name, value in where.items() for word in (f"--{name}", str(value))]


def default_parallel() -> str:
    """zero3 where DeepSpeed is installed, else fsdp2, which shards as much."""
    return "zero3" if find_spec("deepspeed") else "fsdp2"


def training_command(gpus: int | None, nodes: int, parallel: str | None, processes: int, stage: list[str]) -> list[str]:
    """The command that runs `stage` (`-m recipes.sft …`), checked against this machine.

    Raises:
        MachineError: it cannot run so.
    """
    settings = settings_of(stage)
    if is_true(settings.get("use_cpu")):
        check_batch(settings, processes, variable="PROCESSES")
        check_disk(settings)
        if processes == 1:
            return [sys.executable, *stage]
        return [sys.executable, "-m", "launch.torchrun", "--standalone", "--nproc_per_node", str(processes), *stage]
    gpus = gpus if gpus is not None else max(1, len(machine.gpus()))
    recipe = str(settings.get("config", stage[1] if len(stage) > 1 else "this stage"))
    check_gpus(gpus, recipe)
    check_batch(settings, gpus, nodes)
    check_disk(settings)
    check_judge(settings, gpus, recipe)
    check_generation_server(settings)
    if gpus * nodes == 1:
        return [sys.executable, *stage]
    parallel = parallel or default_parallel()
    if parallel.startswith("zero") and find_spec("deepspeed") is None:
        raise MachineError(
            f"PARALLEL={parallel} needs DeepSpeed: .venv/bin/pip install -r requirements-gpu.txt; or PARALLEL=fsdp2"
        )
    command = [sys.executable, "-m", "launch.torchrun", "--config_file", str(CONFIGS / f"{parallel}.yaml")]
    command += [*rendezvous(nodes), "--nproc_per_node", str(gpus)]
    print(f"{gpus * nodes} GPUs, {parallel}", flush=True)
    return [*command, *stage]
