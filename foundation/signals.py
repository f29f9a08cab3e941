"""Signals through the levels of a command (make, stage, torchrun, trainer): the first asks to end, the second ends.

    python -m foundation.signals launch/judge_server.sh      a command that ends with its parent, however that ends

A terminal's Ctrl-C reaches a whole process group, and `timeout` and make each pass a SIGTERM on: the same signal arrives
several times at once. So a level starts the one below in a group of its own, passes each signal on once, and takes what
comes within `TOGETHER` seconds for one.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
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


def tell(number: int) -> None:
    """Say that a signal came, unless this is a part of a command whose parent does."""
    if not os.environ.get(PART) and "TORCHELASTIC_RUN_ID" not in os.environ:
        name = signal.Signals(number).name
        print(f"{name} received; the same command resumes from what is written", file=sys.stderr, flush=True)


def tell_interrupts() -> None:
    """Make Ctrl-C of a command of ours one line wherever it comes. Its imports take seconds, in which KeyboardInterrupt is the
    stack trace of whatever library is being read, or is swallowed by it: there it ends the process at once."""
    # What -m names is looked for, and its package imported, while the first argument is still "-m".
    ours = sys.argv and (sys.argv[0] == "-m" or os.path.basename(sys.argv[0]) == "inference.py")
    if ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
        sys.excepthook = _uncaught


def quiet_tasks() -> None:
    """Keep asyncio from reporting the task in which KeyboardInterrupt is raised as one whose exception nobody asked for."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)


def _interrupted(number: int, frame: FrameType | None) -> None:
    if frame is None or frame.f_code.co_name == "<module>" or _importing(frame):
        tell(number)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    quiet_tasks()
    raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        tell(signal.SIGINT)
    else:
        sys.__excepthook__(kind, error, trace)


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
