"""What this machine is: GPUs, memory, disk, free ports. Standard library only, so that it works before anything is installed."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import NoReturn

from foundation.errors import OneLineError
from foundation.governance import may_use_proxy, printable
from foundation.masking import mask

GIB = 2**30
_MOST_BYTES = 2 << 20  # of a list of models


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as its driver reports it.

    Attributes:
        memory: bytes; None where the driver gives no number (memory shared with the CPU, a MIG slice).
        compute_capability: e.g. 9.0; bfloat16 needs 8.0. None where the driver does not say.
    """

    name: str
    memory: int | None
    compute_capability: float | None
    driver: str
    uuid: str = ""


class MachineError(OneLineError):
    """Something about this machine that stops a stage: one line, with what mends it."""


class OneLineParser(argparse.ArgumentParser):
    """argparse without the block of usage before an error; `--help` shows that."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {mask(message)} (--help lists the options)", file=sys.stderr)
        raise SystemExit(2)


def gpus() -> list[Gpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES shows of this machine's; none where there is no NVIDIA driver.

    Raises:
        MachineError: the driver is there and does not work.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return all_gpus() if visible is None else shown(all_gpus(), visible)


def all_gpus() -> list[Gpu]:
    """The GPUs of this machine, hidden ones too; none where there is no NVIDIA driver.

    Raises:
        MachineError: the driver is there and does not work.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = "--query-gpu=uuid,name,memory.total,compute_cap,driver_version"
    try:
        run = subprocess.run(
            [program, query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MachineError(f"nvidia-smi does not answer ({error}); the driver may need a restart") from error
    lines = (run.stdout + (run.stderr if run.returncode else "")).strip().splitlines()
    if any("No devices were found" in line for line in lines):  # with status 0 by some drivers, 6 by others
        return []
    if run.returncode:
        raise MachineError(f"nvidia-smi: {lines[0] if lines else 'failed'}; install or restart the NVIDIA driver")
    found = []
    for line in lines:
        if line.count(",") < 4:
            raise MachineError(f"nvidia-smi says {line!r} instead of its GPUs; install or restart the NVIDIA driver")
        uuid, rest = line.split(",", 1)
        name, memory, capability, driver = (part.strip() for part in rest.rsplit(",", 3))
        mebibytes, number = _number(memory), _number(capability)
        found.append(Gpu(name, None if mebibytes is None else int(mebibytes) * 2**20, number, driver, uuid.strip()))
    return found


def shown(found: Sequence[Gpu], visible: str) -> list[Gpu]:
    """Those of `found` that a CUDA_VISIBLE_DEVICES of `visible` shows: CUDA stops at the first word that names none."""
    chosen = []
    for word in (part.strip() for part in visible.split(",")):
        if word.isdigit() and int(word) < len(found):
            chosen.append(found[int(word)])
        elif word.startswith("MIG-") and found:
            chosen.append(replace(found[0], memory=None))
        elif len(word) > 4 and (
            named := [gpu for gpu in found if word.startswith("GPU-") and gpu.uuid.startswith(word)]
        ):
            chosen.append(named[0])
        else:
            break
    return chosen


def _number(text: str) -> float | None:
    """`81920`; None for `[N/A]` and the like."""
    try:
        return float(text)
    except ValueError:
        return None


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


def served_models(base_url: str, seconds: float = 5) -> list[str] | None:
    """Names of the models that the OpenAI-compatible server at `base_url` lists; None where it wants a key first.

    Args:
        base_url: with the version, e.g. `http://127.0.0.1:8000/v1`.

    Raises:
        MachineError: nothing answers there, or something that is no such server.
    """
    # Not by a proxy of the environment, which knows nothing of this machine's own servers (governance.py).
    proxies = urllib.request.ProxyHandler(None if may_use_proxy(base_url) else {})
    try:
        with urllib.request.build_opener(proxies).open(f"{base_url.rstrip('/')}/models", timeout=seconds) as answer:
            body = answer.read(_MOST_BYTES + 1)
        if len(body) > _MOST_BYTES:
            raise ValueError("a body without end")
        return [printable(model["id"]) for model in json.loads(body)["data"] if isinstance(model["id"], str)]
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return None
        raise MachineError(
            f"what answers at {base_url} is no vLLM server (HTTP {error.code} for a list of models)"
        ) from None
    except (OSError, HTTPException) as error:
        reason = printable(str(getattr(error, "reason", error)))
        raise MachineError(f"nothing answers at {base_url} ({reason})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MachineError(f"what answers at {base_url} is no vLLM server (no list of models)") from error


def format_bytes(number: float) -> str:
    """Bytes for people: `512 MiB`, `17.4 GiB`, `1.2 TiB`."""
    if number >= 1024 * GIB:
        return f"{number / 1024 / GIB:.1f} TiB"
    return f"{number / GIB:.1f} GiB" if number >= GIB else f"{number / 2**20:.0f} MiB"
