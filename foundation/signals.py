"""Signals through the levels of a command (make, stage, torchrun, trainer): the first asks to end, the second ends.

    python -m foundation.signals launch/judge_server.sh      a command that ends with its parent, however that ends

A terminal's Ctrl-C reaches a whole process group, and `timeout` and make each pass a SIGTERM on: the same signal arrives
several times at once. So a level starts the one below in a group of its own, passes each signal on once, and takes what
comes within `TOGETHER` seconds for one.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TOGETHER = 1.0
PART = "UNIRG_PART_OF_A_COMMAND"  # in the environment of a process whose parent says what a user is told
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """Have the kernel send this process `number` when its parent ends, be it by kill -9 (Linux). Kept over exec."""
    if hasattr(_libc, "prctl"):
        _libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() == 1 and os.getpid() != 1 and os.environ.get(PART):  # it ended before
            os.kill(os.getpid(), number)


def start(command: Sequence[str], **options: Any) -> subprocess.Popen:
    """Start a command that ends with this process, in a process group of its own."""
    return subprocess.Popen(command, process_group=0, preexec_fn=end_with_parent, **options)


@contextmanager
def handled(receive: Callable[[int], None], numbers: Sequence[int] = STOPPING) -> Iterator[None]:
    """Call `receive` with each signal that is not ignored (as nohup ignores SIGHUP); repeats within `TOGETHER` are one."""
    last = {"at": -TOGETHER}

    def handler(number: int, frame: Any) -> None:
        now = time.monotonic()
        if now - last["at"] >= TOGETHER:
            last["at"] = now
            receive(number)

    before = {n: signal.signal(n, handler) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def run(command: Sequence[str]) -> int:
    """Run a command to its end, passing signals on to it; its exit status, 128 + the signal's number where one ended it."""
    process: list[subprocess.Popen] = []
    early: list[int] = []

    def receive(number: int) -> None:
        if process:
            process[0].send_signal(number)
        else:
            early.append(number)

    with handled(receive, (*STOPPING, signal.SIGUSR1)):
        process.append(start(command))
        for number in early:
            process[0].send_signal(number)
        status = process[0].wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    end_with_parent()
    os.execvp(sys.argv[1], sys.argv[1:])
