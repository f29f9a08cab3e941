"""torchrun without its own stack trace: a process's one-line error is the last thing a user reads.

    python -m launch.torchrun --standalone --nproc_per_node 2 -m recipes.sft --config recipes/demo/sft.yaml
    python -m launch.torchrun --config_file launch/accelerate/zero3.yaml --standalone --nproc_per_node 8 -m recipes.sft …

Takes torchrun's arguments, after the accelerate configuration, if there is one, whose variables the processes get (as from
`accelerate launch`, which starts them by torchrun too). Exit status: that of the first process that failed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from foundation import signals
from foundation.machine import MachineError
from launch.rank import accelerate_environment


def pass_on(number: int, received: list[int]) -> None:
    """Send a signal to the processes that torchrun has started; without any, end."""
    received.append(number)
    me = os.getpid()
    started = Path(f"/proc/{me}/task/{me}/children").read_text().split()
    for pid in map(int, started):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    if not started:
        raise SystemExit(128 + number)


def main() -> int:
    # Its warnings and its report of a failed process repeat what that process has said already.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    words = sys.argv[1:]
    if words[:1] == ["--config_file"] and len(words) > 1:
        try:
            os.environ.update(accelerate_environment(Path(words[1])))
        except MachineError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        words = words[2:]
    # torchrun's own handling of a signal kills all after 30 s, in the middle of a large checkpoint, and the workers of data
    # loaders at once. Here the trainers alone get it; they end by themselves, and torchrun with them.
    received: list[int] = []
    try:
        with signals.handled(lambda number: pass_on(number, received), (*signals.STOPPING, signal.SIGUSR1)):
            torchrun(["--signals_to_handle", "SIGUSR2", *words])
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode < 0 and -failure.exitcode not in received:
            print(f"error: process {failure.local_rank} was ended by signal {-failure.exitcode}", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
