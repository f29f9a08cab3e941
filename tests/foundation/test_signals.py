"""Every way to stop, at every level: what runs below ends too, in order after a signal, at once after a second."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rl_runs import REPOSITORY, options

CHILD = """
import os, signal, sys, time
from foundation.signals import handled
got = []
def receive(number):
    got.append(number)
    print("got", signal.Signals(number).name, flush=True)
    if len(got) > 1 or sys.argv[1] == "ends":
        sys.exit(128 + number)
with handled(receive):
    print("child", os.getpid(), flush=True)
    while True:
        time.sleep(0.05)
"""


def stage(tmp_path: Path, how: str) -> tuple[subprocess.Popen, int]:
    """`launch.stage` over a child that ends at the first signal (`ends`) or the second, and the child's number."""
    command = [sys.executable, "-u", "-m", "launch.stage", "--run", str(tmp_path), "--stage", "sft"]
    process = subprocess.Popen(
        [*command, "--", sys.executable, "-u", "-c", CHILD, how],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("child"):
            return process, int(line.split()[1])
    raise AssertionError("no child")


def gone(pid: int, seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stage_passes_a_signal_on_once_and_ends_with_what_it_runs(number: int, tmp_path: Path) -> None:
    process, child = stage(tmp_path, "ends")
    for _ in range(3):  # of a terminal, of timeout, and of make
        process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert output.count("got") == 1
    assert output.splitlines()[-1] == f"── sft stopped (exit status {128 + number})"
    assert gone(child)


def test_the_second_signal_is_passed_on_too(tmp_path: Path) -> None:
    process, child = stage(tmp_path, "ends at the second")
    process.send_signal(signal.SIGTERM)
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143
    assert gone(child)


def test_what_a_killed_stage_ran_is_asked_to_end(tmp_path: Path) -> None:
    process, child = stage(tmp_path, "ends")
    process.kill()
    process.wait()
    assert gone(child)


def test_a_stage_ends_with_the_make_that_called_it(tmp_path: Path) -> None:
    """As make's shell does: it ends at a signal and says nothing to what it runs."""
    line = f"{sys.executable} -u -m launch.stage --run {tmp_path} --stage sft -- {sys.executable} -u -c '{CHILD}' ends; true"
    shell = subprocess.Popen(["sh", "-c", line], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    child = next(int(line.split()[1]) for line in shell.stdout if line.startswith("child"))
    shell.kill()
    shell.wait()
    assert gone(child)
    shell.stdout.close()


def test_a_command_says_one_line_when_it_is_stopped() -> None:
    code = "import time\nfrom foundation.errors import run_command\ndef main():\n print('runs', flush=True)\n time.sleep(60)\nrun_command(main)"
    for number in (signal.SIGINT, signal.SIGTERM):
        stops_with_one_line(code, number)


def stops_with_one_line(code: str, number: int) -> None:
    """Run a program, and send it the signal once it has printed a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert said == f"{signal.Signals(number).name} received; the same command resumes from what is written\n"


@pytest.mark.parametrize("command", [["-m", "recipes.grpo"], ["-m", "evaluation", "score"], ["inference.py"]])
def test_an_interrupt_during_the_imports_is_one_line_though_the_library_swallows_it(
    command: list[str], tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text(
        "import time\nprint('reading', flush=True)\nwhile True:\n    try:\n        time.sleep(60)\n    except BaseException:\n        pass\n"
    )
    for name in ("yaml", "pyarrow", "numpy"):  # whichever of them a command reads first
        (tmp_path / f"{name}.py").write_text("import torch\n")
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "reading\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert said == "SIGINT received; the same command resumes from what is written\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_task_is_one_line(number: int) -> None:
    code = """
import asyncio, time
from foundation.errors import run_command

async def work():
    print("runs", flush=True)
    while True:
        time.sleep(0.01)  # in the inner task; the outer one receives its exception while the loop is being closed

async def call():
    await asyncio.wait_for(work(), 60)

run_command(lambda: asyncio.run(call()))
"""
    stops_with_one_line(code, number)


def test_what_a_dead_process_does_to_the_others_is_one_line_and_other_errors_keep_their_trace() -> None:
    code = "from foundation.errors import run_command\ndef main():\n    raise RuntimeError({!r})\nrun_command(main)"
    for said, status in (
        ("[third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]: Connection reset by peer.", 2),
        ("NCCL error: ncclRemoteError: A call failed possibly due to a remote process exiting prematurely.", 2),
        ("mat1 and mat2 shapes cannot be multiplied", 1),
    ):
        done = subprocess.run([sys.executable, "-c", code.format(said)], cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == status
        assert ("another process of this run has ended" in done.stderr) == (status == 2)
        assert ("Traceback" in done.stderr) == (status == 1)


# ---- training by two processes -----------------------------------------------------------------------------------------


def trainers(session: int) -> list[int]:
    """Processes of the test's run that train, however they were started: by a mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"UNIRG_TEST={session}\0".encode() in (folder / "environ").read_bytes() + b"\0":
                words = (folder / "cmdline").read_text()
                if (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    found.append((int(folder.name), words))
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue
    return sorted(found)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["launch.stage", "launch.torchrun", "rank"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_a_training_by_two_whichever_level_is_stopped(
    level: str, number: int, tiny_base: Path, phantom_data: Path, tmp_path: Path
) -> None:
    given = {
        "model_name_or_path": tiny_base,
        "data_dir": phantom_data,
        "output_dir": tmp_path / "sft",
        "datasets": "phantom_prairie",
        "max_steps": 500,
        "save_steps": 500,
        "global_batch_size": 8,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
    }
    command = [sys.executable, "-m", "launch.stage", "--run", str(tmp_path), "--stage", "sft", "--processes", "2"]
    command += ["--", "-m", "recipes.sft"]
    mark = os.getpid() * 1000 + number
    log = tmp_path / "log"
    process = subprocess.Popen(
        [*command, "--config", "recipes/demo/sft.yaml", *options(given)],
        cwd=REPOSITORY,
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "UNIRG_TEST": str(mark)},
    )
    until = time.monotonic() + 300
    while "step 2/" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until
        time.sleep(0.1)
    running = trainers(mark)
    named = {word: pid for pid, words in running for word in ("launch.stage", "launch.torchrun") if word in words}
    ranks = [pid for pid, words in running if "launch." not in words and "recipes.sft" in words]
    assert len(ranks) == 2, running
    # The process by its module: launch.stage holds the words of all that it runs.
    named["launch.stage"] = process.pid
    named["launch.torchrun"] = next(pid for pid, words in running if "launch.torchrun" in words and pid != process.pid)
    os.kill(named.get(level, ranks[1]), number)
    process.wait(timeout=120)
    until = time.monotonic() + 30
    while trainers(mark) and time.monotonic() < until:
        time.sleep(0.2)
    assert trainers(mark) == [], log.read_text()
    text = log.read_text()
    assert "Traceback" not in text, text
    if number != signal.SIGKILL or level != "rank":
        assert list((tmp_path / "sft").glob("checkpoint-*/manifest.json")), text
