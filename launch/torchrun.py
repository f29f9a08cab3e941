"""torchrun without its own stack trace: a process's one-line error is the last thing a user reads.

    python -m launch.torchrun --standalone --nproc_per_node 2 -m recipes.sft --config recipes/demo/sft.yaml
    python -m launch.torchrun --config_file launch/accelerate/zero3.yaml --standalone --nproc_per_node 8 -m recipes.sft …

Takes torchrun's arguments, after the accelerate configuration, if there is one, whose variables the processes get (as from
`accelerate launch`, which starts them by torchrun too). Exit status: that of the first process that failed.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from launch.machine import MachineError
from launch.rank import accelerate_environment


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
    try:
        torchrun(words)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode < 0:
            print(f"error: process {failure.local_rank} was ended by signal {-failure.exitcode}", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
