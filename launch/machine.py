"""What this machine is: GPUs, memory, disk, free ports. Standard library only, so that it works before anything is installed."""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as its driver reports it.

    Attributes:
        memory: bytes.
        compute_capability: e.g. 9.0; bfloat16 needs 8.0.
    """

    name: str
    memory: int
    compute_capability: float
    driver: str


class MachineError(ValueError):
    """Something about this machine that stops a stage: one line, with what mends it."""


class OneLineParser(argparse.ArgumentParser):
    """argparse without the block of usage before an error; `--help` shows that."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message} (--help lists the options)", file=sys.stderr)
        raise SystemExit(2)


def gpus() -> list[Gpu]:
    """The GPUs of this machine, those hidden by CUDA_VISIBLE_DEVICES left out; none where there is no NVIDIA driver.

    Raises:
        MachineError: the driver is there and does not work.
    """
    program = shutil.which("nvidia-smi")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if program is None or visible == "":
        return []
    query = "--query-gpu=name,memory.total,compute_cap,driver_version"
    try:
        run = subprocess.run(
            [program, query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MachineError(f"nvidia-smi does not answer ({error}); the driver may need a restart") from error
    if run.returncode:
        reason = (run.stdout + run.stderr).strip().splitlines()
        raise MachineError(f"nvidia-smi: {reason[0] if reason else 'failed'}; install or restart the NVIDIA driver")
    found = []
    for line in run.stdout.strip().splitlines():
        name, memory, capability, driver = (part.strip() for part in line.rsplit(",", 3))
        found.append(Gpu(name, int(memory) * 2**20, float(capability), driver))
    return found if visible is None else found[: len(visible.split(","))]


def memory_bytes() -> int:
    """Physical memory, or the container's limit where that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return total


def free_disk(path: Path) -> int:
    """Free bytes where `path` is, or would be made."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on `port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def format_bytes(number: float) -> str:
    """Bytes for people: `512 MiB`, `17.4 GiB`, `1.2 TiB`."""
    if number >= 1024 * GIB:
        return f"{number / 1024 / GIB:.1f} TiB"
    return f"{number / GIB:.1f} GiB" if number >= GIB else f"{number / 2**20:.0f} MiB"
