"""Run a training command with its judge beside it on the same GPUs: started, checked, and stopped with it.

    python -m launch.judged [--gpus 8] [--log outputs/unirg_cxr/judge.log] -- python -m launch.stage … -- -m recipes.grpo …

TRL scores a generation before it trains on it, so judge and trainer wait for each other wherever the judge is; on GPUs of its own
either would stand idle. Beside training it has a part of each GPU's memory (launch/planning/judge_copies.py), and all of them compute
for whoever is at work. Where a judge already answers at judge_base_url, or it is another machine's, nothing is started.

Whatever ends this process, kill -9 included, ends judge and training: a guard holds a pipe from it, and ends the judge's whole
process group when the pipe closes.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from foundation import machine, signals
from foundation.machine import MachineError
from foundation.masking import mask
from foundation.stage_command import settings_of
from launch.judges import judge_kind
from launch.planning.assumed import Assumptions
from launch.planning.judge_copies import SHARE_BESIDE, copies, kind_of_judge
from launch.processes import judge_place, judge_url

SERVER = Path(__file__).resolve().parent / "judge_server.sh"
START_SECONDS = float(os.environ.get("JUDGE_START_SECONDS", 1800))  # weights are read, and CUDA graphs are made
STOP_SECONDS = 20.0
_POLL_SECONDS = 1.0


def answers(url: str) -> bool:
    """Whether a server at `url` lists its models."""
    try:
        machine.served_models(url)
    except MachineError:
        return False
    return True


def layout(settings: dict[str, Any], gpus: int) -> dict[str, str]:
    """Variables of launch/judge_server.sh for a judge beside training on `gpus` GPUs.

    Raises:
        MachineError: no copy of it fits beside.
    """
    there = machine.gpus()[:gpus]
    memory = min((gpu.memory for gpu in there if gpu.memory is not None), default=None)
    if memory is None or len(there) < gpus:
        raise MachineError(f"{gpus} GPUs asked for, {len(there)} here whose memory is known")
    name = str(settings.get("judge_model") or "")
    least, number = copies(kind_of_judge(name, Assumptions()), gpus, memory * SHARE_BESIDE)
    if not number:
        known = "" if judge_kind(name) else " (taken for one of 32.8 B parameters; launch.judges does not list it)"
        raise MachineError(
            f"one copy of the judge {name}{known} takes {least} GPUs with {SHARE_BESIDE:.0%} of each, and {gpus} train; a smaller "
            f"one (python -m launch.judges), or {judge_place(settings, gpus)}"
        )
    return {"TENSOR_PARALLEL": str(least), "DATA_PARALLEL": str(number), "MEMORY": str(SHARE_BESIDE)}


def guarded(command: Sequence[str], log: Path, environment: dict[str, str]) -> subprocess.Popen:
    """Start a command under a guard, its output in `log`; it ends when this process does or closes the guard's input."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as output:
        return signals.start(
            [sys.executable, "-m", "launch.judged", "--guard", "--", *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def guard(command: Sequence[str]) -> int:
    """Run a command in a process group of its own until it ends or standard input closes; then end all of the group."""
    for number in signals.STOPPING:
        signal.signal(number, signal.SIG_IGN)  # the pipe says when to end
    # Of what is ignored a child would inherit that.
    process = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL, preexec_fn=_heed_signals)
    closed = threading.Thread(
        target=os.read, args=(0, 1), daemon=True
    )  # nobody writes: it returns when the pipe closes
    closed.start()
    while closed.is_alive() and process.poll() is None:
        time.sleep(0.1)
    status = process.poll()
    end_group(process)
    return 0 if status is None else status


def _heed_signals() -> None:
    for number in signals.STOPPING:
        signal.signal(number, signal.SIG_DFL)
    signals.end_with_parent()


def end_group(process: subprocess.Popen) -> None:
    """End a process and all that it started: asked first, killed after `STOP_SECONDS`."""
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        end = time.monotonic() + seconds
        while time.monotonic() < end and _group_lives(process):
            time.sleep(0.1)


def _group_lives(process: subprocess.Popen) -> bool:
    process.poll()  # or a dead leader would count
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for_judge(judge: subprocess.Popen, url: str, log: Path) -> None:
    """Return when the judge answers.

    Raises:
        MachineError: it ended, or did not come up in `START_SECONDS`.
    """
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if judge.poll() is not None:
            last = next((line for line in reversed(log.read_text(errors="replace").splitlines()) if line.strip()), "")
            raise MachineError(
                f"the judge ended before it answered ({last.strip()[:200] or 'no reason given'}); see {log}"
            )
        if answers(url):
            return
        time.sleep(_POLL_SECONDS)
    raise MachineError(
        f"the judge did not answer at {url} within {START_SECONDS:.0f} s; see {log}, or JUDGE_START_SECONDS"
    )


def run(command: Sequence[str], judge: subprocess.Popen, log: Path) -> int:
    """Run the training to its end, passing signals on; a judge that ends before it ends it too."""
    received: list[int] = []
    with signals.handled(received.append, (*signals.STOPPING, signal.SIGUSR1)):
        training = signals.start(command)
        while training.poll() is None:
            while received:
                training.send_signal(received.pop(0))
            if judge.poll() is not None:
                print(f"error: the judge ended; see {log}. Training stops with a checkpoint", file=sys.stderr)
                training.terminate()
                training.wait()
                return 1
            time.sleep(0.2)
    return training.returncode if training.returncode >= 0 else 128 - training.returncode


def train(command: list[str], gpus: int | None, log: Path) -> int:
    """Run `command` with the judge that its stage asks.

    Raises:
        MachineError: the judge cannot run beside it, or does not come up.
    """
    stage = command[command.index("--") + 1 :] if "--" in command else command
    settings = settings_of(stage)
    url = judge_url(settings)
    if url is None or answers(url):
        os.execvp(command[0], command)
    variables = layout(settings, gpus or len(machine.gpus()))
    place = urlsplit(url)
    variables |= {
        "JUDGE_MODEL": str(settings.get("judge_model")),
        "HOST": place.hostname,
        "PORT": str(place.port or 80),
    }
    variables["WEIGHTS_DIR"] = str(settings.get("weights_dir") or "weights")
    print(
        f"judge: {variables['JUDGE_MODEL']} on the GPUs that train, {variables['DATA_PARALLEL']} × {variables['TENSOR_PARALLEL']}, "
        f"{SHARE_BESIDE:.0%} of each; its log is {log}",
        flush=True,
    )
    judge = guarded(["bash", str(SERVER)], log, os.environ | variables)
    try:
        wait_for_judge(judge, url, log)
        print("judge: answers", flush=True)
        return run(command, judge, log)
    finally:
        judge.stdin.close()
        judge.wait()


def main(arguments: list[str] | None = None) -> int:
    parser = machine.OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m launch.judged"
    )
    parser.add_argument("--gpus", type=int, help="GPUs that train; default: all")
    parser.add_argument("--log", type=Path, default=Path("judge.log"), help="file for the judge's output")
    parser.add_argument("--guard", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- the command that trains")
    given = parser.parse_args(arguments)
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    if not command:
        parser.error("give the command that trains after --")
    if given.guard:
        return guard(command)
    signals.end_with_parent()
    try:
        return train(command, given.gpus, given.log)
    except MachineError as error:
        print(f"error: {mask(str(error))}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
