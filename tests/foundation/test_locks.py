"""One writer a folder, over processes: refused while the owner lives, taken over once it is dead."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foundation import locks
from foundation.locks import STALE, LockError, folder_lock

HOLD = "import sys, time\nfrom foundation.locks import hold_folder\nhold_folder(sys.argv[1])\nprint('held', flush=True)\ntime.sleep(60)"


@pytest.fixture
def owner(tmp_path: Path):
    """A process that holds `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_with_the_first_ones_name_even_while_that_is_stopped(owner, tmp_path: Path) -> None:
    named = rf"process {owner.pid} on {socket.gethostname()} is writing in {tmp_path}"
    with pytest.raises(LockError, match=named), folder_lock(tmp_path):
        pass
    os.kill(owner.pid, signal.SIGSTOP)
    with pytest.raises(LockError, match=named), folder_lock(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_taken_over_at_once(owner, tmp_path: Path) -> None:
    owner.kill()
    owner.wait()
    assert (tmp_path / ".lock").is_file()
    started = time.monotonic()
    with folder_lock(tmp_path), folder_lock(tmp_path):  # a command may call another
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert time.monotonic() - started < STALE  # without waiting for the heartbeat to be missed
    assert list(tmp_path.iterdir()) == []


def no_locks(*_: object) -> None:
    raise OSError(38, "Function not implemented")


def test_without_locks_of_the_file_system_a_living_owner_is_known_by_its_process(
    owner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with pytest.raises(LockError, match=f"process {owner.pid} "), folder_lock(tmp_path):
        pass
    owner.kill()
    owner.wait()
    with folder_lock(tmp_path):
        pass


def test_an_owner_on_another_machine_is_known_by_its_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".lock"
    path.write_text(json.dumps({"host": "node7", "pid": 12, "started": "1"}))
    os.utime(path, (time.time() - 3600,) * 2)
    with folder_lock(tmp_path):  # silent for an hour
        pass
    path.write_text(json.dumps({"host": "node7", "pid": 12, "started": "1"}))
    monkeypatch.setattr(locks, "HEARTBEAT", 0.1)
    monkeypatch.setattr(locks, "STALE", 0.5)
    beating = "import os, sys, time\nwhile True: os.utime(sys.argv[1]); time.sleep(0.1)"
    beat = subprocess.Popen([sys.executable, "-c", beating, str(path)])
    try:
        time.sleep(0.3)
        with pytest.raises(LockError, match="process 12 on node7 is writing"), folder_lock(tmp_path):
            pass
    finally:
        beat.kill()
        beat.wait()
    with folder_lock(tmp_path):
        pass


def test_a_file_where_the_folder_should_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(LockError, match="out is not a folder; move that file away"), folder_lock(tmp_path / "out"):
        pass


def test_a_folder_that_the_lock_made_and_nothing_was_written_to_is_gone_again(tmp_path: Path) -> None:
    with folder_lock(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / ".lock").is_file()
    assert list(tmp_path.iterdir()) == []
    with folder_lock(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "x").write_text("x")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["x"]
