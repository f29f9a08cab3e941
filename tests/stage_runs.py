"""`python -m recipes.sft …` and the like, without seven seconds of imports each: forked from a process that has them behind it.

What runs is the command's own `main`, in a process of its own, from the repository. Tests that send signals, or that are
about how a process starts, start one in the usual way.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
MODULES = ("recipes.sft", "recipes.grpo", "recipes.evaluate", "recipes.select_checkpoint")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run_stage(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m WORDS` to its end, its output captured; `words[0]` is one of `MODULES`."""
    assert words[0] in MODULES
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        server = _server()
        socket.send_fds(server, [json.dumps(words).encode()], [output.fileno(), errors.fileno()])
        status = os.waitstatus_to_exitcode(int(server.recv(32)))
        output.seek(0), errors.seek(0)
        return subprocess.CompletedProcess(words, status, output.read().decode(), errors.read().decode())


@functools.cache
def _server() -> socket.socket:
    ours, theirs = socket.socketpair()
    command = [sys.executable, str(Path(__file__).resolve()), str(theirs.fileno())]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, pass_fds=[theirs.fileno()])
    theirs.close()
    ours.settimeout(600)
    atexit.register(lambda: (ours.close(), process.wait()))
    return ours


def _serve(connection: socket.socket) -> None:
    """Fork for each request, and answer with the child's wait status, until the other end closes."""
    for module in MODULES:
        importlib.import_module(module)
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, 2**20, 2)
        if not message:
            return
        child = os.fork()
        if child == 0:
            _become(json.loads(message), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        connection.send(str(os.waitpid(child, 0)[1]).encode())


def _become(words: list[str], output: int, errors: int) -> None:
    """Be `python -m WORDS`, its output in these files; does not return."""
    os.dup2(output, 1), os.dup2(errors, 2)
    sys.orig_argv = [sys.executable, "-m", *words]
    sys.argv = [words[0], *words[1:]]
    del sys.modules[words[0]]
    status = 0
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush(), sys.stderr.flush()
    atexit._run_exitfuncs()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
