"""A judge beside training: started, checked, stopped with it, and nothing left running, whatever ends the command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
# A server that starts a worker, as vLLM does, notes both, and lists the model after a while.
VLLM = """#!{python}
import http.server, json, os, subprocess, sys, time
words = sys.argv[1:]
deaf = "import signal; signal.signal(15, signal.SIG_IGN);" if os.environ.get("FAKE_JUDGE") == "deaf" else ""
worker = subprocess.Popen([sys.executable, "-c", deaf + "import time; time.sleep(600)"])
with open("{folder}/pids", "a") as pids:
    pids.write(f"{{os.getpid()}}\\n{{worker.pid}}\\n")
with open("{folder}/words", "w") as out:
    out.write(" ".join(words))
if os.environ.get("FAKE_JUDGE") == "fails":
    print("CUDA out of memory")
    sys.exit(1)
time.sleep(0.5)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({{"data": [{{"id": "Qwen/Qwen3-8B"}}]}}).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *args): pass
server = http.server.HTTPServer(("127.0.0.1", int(words[words.index("--port") + 1])), Handler)
if os.environ.get("FAKE_JUDGE") == "dies":
    server.timeout = 0.5
    end = time.monotonic() + 2
    while time.monotonic() < end: server.handle_request()
    sys.exit(3)
server.serve_forever()
"""
TRAIN = """
import os, signal, sys, time, urllib.request
urllib.request.urlopen(sys.argv[1] + "/models").close()
with open(sys.argv[2], "a") as pids: pids.write(f"{os.getpid()}\\n")
time.sleep(float(sys.argv[3]))
sys.exit(int(sys.argv[4]))
"""


class Node:
    """A machine with GPUs that are not there, and a vLLM that is none."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder / "judge.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        self.script("nvidia-smi", "#!/bin/sh\n" + "echo 'GPU-a, NVIDIA H100, 81559, 9.0, 570.1'\n" * 8)
        self.script("vllm", VLLM.format(python=sys.executable, folder=folder))
        (folder / "train.py").write_text(TRAIN)
        self.recipe()

    def script(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def recipe(self, judge: str = "Qwen/Qwen3-8B") -> None:
        text = f"weight_chexprompt: 0.5\njudge_base_url: {self.url}\njudge_model: {judge}\n"
        (self.folder / "rl_step2.yaml").write_text(text)

    def start(self, seconds: float = 0, status: int = 0, gpus: int = 8, **environment: str) -> subprocess.Popen:
        train = [
            sys.executable,
            str(self.folder / "train.py"),
            self.url,
            str(self.folder / "pids"),
            str(seconds),
            str(status),
        ]
        command = [sys.executable, "-m", "launch.judged", "--gpus", str(gpus), "--log", str(self.log), "--", *train]
        command += ["--", "--config", str(self.folder / "rl_step2.yaml")]
        given = {
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "VLLM": str(self.folder / "vllm"),
            "PYTHON": sys.executable,
        }
        clean = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=clean | given | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )  # fmt: skip

    def pids(self) -> list[int]:
        file = self.folder / "pids"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def running(self) -> list[int]:
        """Of all that were started, those that live, ten seconds to end given."""
        end = time.monotonic() + 40
        while (alive := [pid for pid in self.pids() if lives(pid)]) and time.monotonic() < end:
            time.sleep(0.1)
        return alive


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(true, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def node(tmp_path, monkeypatch):
    node = Node(tmp_path)
    yield node
    for pid in node.pids():
        if lives(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("status", [0, 3])
def test_the_judge_is_there_while_it_trains_and_gone_afterwards(node, status):
    run = node.start(status=status)
    out, err = run.communicate(timeout=120)
    assert run.returncode == status, err
    assert "4 × 2" in out  # the 8 B fits 15% of two 80 GB GPUs
    assert len(node.pids()) == 3
    assert node.running() == []
    words = (node.folder / "words").read_text()
    assert "--tensor-parallel-size 2 --data-parallel-size 4" in words
    assert "--gpu-memory-utilization 0.15" in words


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_nothing_is_left_running_whatever_ends_it(node, number):
    run = node.start(seconds=600)
    until(lambda: len(node.pids()) == 3)
    run.send_signal(number)
    run.communicate(timeout=60)
    assert node.running() == []


@pytest.mark.slow  # it is given 20 seconds to end
def test_a_worker_that_does_not_hear_is_killed(node):
    run = node.start(seconds=600, FAKE_JUDGE="deaf")
    until(lambda: len(node.pids()) == 3)
    run.kill()
    run.communicate(timeout=60)
    assert node.running() == []


def test_killed_while_the_judge_starts_nothing_is_left(node):
    run = node.start(seconds=600)
    until(lambda: len(node.pids()) == 2)
    run.kill()
    run.communicate(timeout=60)
    assert node.running() == []


def test_a_judge_that_does_not_come_up_is_told_in_one_line_and_nothing_trains(node):
    run = node.start(FAKE_JUDGE="fails")
    _, err = run.communicate(timeout=120)
    assert run.returncode == 2
    assert err.count("\n") == 1
    assert "CUDA out of memory" in err
    assert str(node.log) in err
    assert len(node.pids()) == 2, "training was started"
    assert node.running() == []


def test_training_stops_when_its_judge_dies(node):
    run = node.start(seconds=600, FAKE_JUDGE="dies")
    _, err = run.communicate(timeout=120)
    assert run.returncode == 1
    assert "the judge ended" in err
    assert node.running() == []


def test_a_judge_that_answers_already_is_taken_and_stays(node):
    with subprocess.Popen([str(node.folder / "vllm"), "--port", node.url.split(":")[2].split("/")[0]]) as server:
        until(lambda: len(node.pids()) == 2)
        time.sleep(1.5)
        run = node.start()
        _, err = run.communicate(timeout=120)
        assert run.returncode == 0, err
        assert len(node.pids()) == 3, "another judge was started"
        assert lives(server.pid)
        server.kill()


def test_a_judge_that_does_not_fit_beside_is_said(node):
    node.recipe("Qwen/Qwen3-32B")
    run = node.start(gpus=1)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 2
    assert "one copy of the judge Qwen/Qwen3-32B takes 8 GPUs with 15% of each, and 1 train" in err
    assert node.pids() == []
