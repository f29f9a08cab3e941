"""torchrun without its own stack trace: a process's one-line error is the last thing a user reads.

    python -m launch.torchrun --standalone --nproc_per_node 2 -m recipes.sft --config recipes/demo/sft.yaml

Takes torchrun's arguments. Exit status: that of the first process that failed.
"""

from __future__ import annotations

import logging
import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun


def main() -> int:
    # Its warnings and its report of a failed process repeat what that process has said already.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    try:
        torchrun(sys.argv[1:])
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode < 0:
            print(f"error: process {failure.local_rank} was ended by signal {-failure.exitcode}", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
