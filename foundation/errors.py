"""A user's mistake, told in one line."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foundation.masking import mask
from foundation.signals import end_with_parent, handled, quiet_tasks, tell

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class OneLineError(ValueError):
    """A user's mistake: what was found, where, and how to mend it, in one line that is shown without a stack trace."""


class RecipeError(OneLineError):
    """A recipe cannot run as it is: what was found, where, and the key or command that mends it."""


class EvaluationError(RecipeError):
    """An evaluation cannot run as it is."""


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """The content of a JSON file that a stage has written: an object that has `keys`.

    Raises:
        FileNotFoundError: it is not there.
        RecipeError: it is not such a file, as after a full disk or a copy that was cut short.
    """
    mend = "put it back from a copy, or make it again (FORCE=1 of the stage that wrote it)"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}; {mend}") from error
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path} is not JSON ({' '.join(str(error).split())}); {mend}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path} does not hold a JSON object; {mend}")
    if missing := [key for key in keys if key not in content]:
        raise RecipeError(f"{path} lacks {', '.join(missing)}; {mend}")
    return content


def read_record(path: Path, *keys: str) -> dict[str, Any]:
    """`read_json`, its mistakes the evaluation's."""
    try:
        return read_json(path, *keys)
    except EvaluationError:
        raise
    except RecipeError as error:
        raise EvaluationError(str(error)) from error


def _told(error: Exception) -> str:
    """An error as one line; of the file system with what mends it."""
    if isinstance(error, OSError) and error.strerror and (error.filename or error.errno in _NO_ROOM):
        room = "; make room on its disk and run the same command again" if error.errno in _NO_ROOM else ""
        return f"{error.filename or 'a file could not be written'}: {error.strerror}{room}"
    return " ".join(str(error).split())


def _stop(number: int, stopped: list[int]) -> None:
    """Raise KeyboardInterrupt, by which what runs is left in order; the next signal ends the process at once."""
    if stopped:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    stopped.append(number)
    quiet_tasks()
    raise KeyboardInterrupt


def _peer_is_gone(error: RuntimeError) -> bool:
    """Whether gloo (CPU) or NCCL (GPU) says that the process at the other end is no more, as after its kill -9."""
    said, gone = str(error), ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
    if "gloo" in said or type(error).__name__ == "DistNetworkError":
        return any(words in said for words in gone)
    return "ncclRemoteError" in said


def run_command(main: Callable[[], None]) -> None:
    """Run a command's `main`; a user's mistake becomes one line on stderr and exit status 2, a signal one and 128 + its number.

    A user's mistake is a `OneLineError`, or an error of the file system.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()  # torchrun, should it be killed
    stopped: list[int] = []
    try:
        with handled(lambda number: _stop(number, stopped)):
            main()
    except KeyboardInterrupt:
        number = stopped[0] if stopped else signal.SIGINT
        tell(number)
        raise SystemExit(128 + number) from None
    except (OneLineError, OSError) as error:
        # Every process of a distributed run makes the same mistake: the first says it, the others give it time to.
        if os.environ.get("RANK", "0") != "0":
            time.sleep(5)
        print(f"error: {mask(_told(error))}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except RuntimeError as error:
        if not _peer_is_gone(error):
            raise
        print("error: another process of this run has ended; its own lines, if it left any, say why", file=sys.stderr)
        raise SystemExit(2) from None
