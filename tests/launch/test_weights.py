"""`make weights` against a hub on loopback: everything arrives whole and recorded, or one line says why not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_server import Hub, serve

import launch.weights
from foundation.weights_lock import LOCK, FetchError, problems, read_lock
from launch.weights import Fetcher, Source, main, sources
from rewards.weights import ENCODERS, RATESCORE_MODELS, SCORERS

REPOSITORY = Path(__file__).resolve().parents[2]
BASE = "someone/Tiny-VL"
JUDGE = "someone/Tiny-Judge"
SHARD = Source(BASE, "Tiny-VL", ("*.json", "*.safetensors"), ("config.json", "*.safetensors"))


def content(name: str, size: int) -> bytes:
    return (name.encode() * (size // len(name) + 1))[:size]


@pytest.fixture
def hub(monkeypatch):
    """A hub with all that `make weights` asks for, a few kB of it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    pause = time.sleep
    monkeypatch.setattr("time.sleep", lambda seconds: pause(min(seconds, 0.05)))
    repositories = {
        SCORERS: {name: content(name, 40_000) for name in ("chexbert.pth", "radgraph.tar.gz", "unused.bin")}
    }
    for repository, files in ENCODERS.values():
        repositories[repository] = {name: content(name, 700) for name in files if name != "special_tokens_map.json"}
    for repository in (BASE, JUDGE, *RATESCORE_MODELS.values()):
        repositories[repository] = {
            "config.json": b"{}",
            "tokenizer.json": b'{"a": 1}',
            "model.safetensors": content(repository, 50_000),
            "pytorch_model.bin": b"pickle",
            "run.py": b"import os",
        }
    with serve(Hub(repositories)) as running:
        yield running


def test_everything_arrives_where_the_metrics_look_for_it(hub, tmp_path, capsys):
    assert main(["--out", str(tmp_path), "--base_model", BASE, "--judge_model", JUDGE, "--mirror", hub.url]) == 0
    for name in (
        "chexbert.pth",
        "radgraph.tar.gz",
        "bert-base-uncased/vocab.txt",
        "distilroberta-base/model.safetensors",
    ):
        assert (tmp_path / name).is_file(), name
    for name in ("RaTE-NER-Deberta", "BioLORD-2023-C", "Tiny-VL", "Tiny-Judge"):
        assert (tmp_path / name / "model.safetensors").is_file()
        assert not list((tmp_path / name).glob("*.bin"))
        assert not list((tmp_path / name).glob("*.py"))
    lock = read_lock(tmp_path).files
    assert lock["chexbert.pth"]["size"] == 40_000
    assert lock["chexbert.pth"]["revision"] == hub.commit(SCORERS)
    assert problems(tmp_path, deep=True) == []
    asked = len(hub.requests)
    assert main(["--out", str(tmp_path), "--base_model", BASE, "--judge_model", JUDGE, "--mirror", hub.url]) == 0
    assert len(hub.requests) == asked  # all there: nothing is asked again
    assert main(["--out", str(tmp_path), "--verify"]) == 0


def test_a_transfer_that_breaks_off_goes_on_where_it_stopped(hub, tmp_path):
    hub.faults["model.safetensors"] = "cut"
    Fetcher(tmp_path, hub.url).fetch(SHARD)
    ranges = hub.downloads("model.safetensors")
    assert ranges[0] is None
    assert int(ranges[1].removeprefix("bytes=").rstrip("-")) > 0
    assert (tmp_path / "Tiny-VL" / "model.safetensors").read_bytes() == hub.repositories[BASE]["model.safetensors"]


def test_a_second_run_asks_for_the_rest_of_a_file_that_the_first_left_in_part(hub, tmp_path):
    """The first is ended in the middle of a file, as by a kill; the second sends a Range and joins the two."""
    whole = 24 * 2**20  # the hub's client writes 10 MiB at a time
    hub.repositories[BASE]["model.safetensors"] = content("weights", whole)
    hub.faults["model.safetensors"] = "hang"
    command = [sys.executable, "-m", "launch.weights", "--out", str(tmp_path), "--only", "base", "--base_model", BASE]
    environment = os.environ | {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    first = subprocess.Popen([*command, "--mirror", hub.url], cwd=REPOSITORY, env=environment)
    parts: list[Path] = []
    deadline = time.monotonic() + 60
    while not parts and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
        parts = [path for path in tmp_path.rglob(".*.part") if 2**20 < path.stat().st_size < whole]
    first.kill()
    first.wait()
    assert parts, "nothing arrived in part"
    hub.faults.clear()
    arrived = parts[0].stat().st_size
    hub.requests.clear()
    Fetcher(tmp_path, hub.url).fetch(SHARD)
    assert hub.downloads("model.safetensors") == [f"bytes={arrived}-"]
    assert (tmp_path / "Tiny-VL" / "model.safetensors").read_bytes() == hub.repositories[BASE]["model.safetensors"]
    assert problems(tmp_path, deep=True) == []


def test_what_had_arrived_before_a_failure_is_kept_and_the_rest_fetched_later(hub, tmp_path):
    hub.faults["model.safetensors"] = "wrong"
    with pytest.raises(FetchError):
        Fetcher(tmp_path, hub.url).fetch(SHARD)
    hub.faults.clear()
    hub.requests.clear()
    Fetcher(tmp_path, hub.url).fetch(SHARD)
    assert len(hub.downloads("model.safetensors")) == 1
    assert hub.downloads("config.json") == []


def test_a_hub_that_always_breaks_off_is_given_up_with_one_line(hub, tmp_path, monkeypatch):
    hub.faults["model.safetensors"] = "stall"
    with pytest.raises(FetchError, match=r"failed \(.*what has arrived is kept"):
        Fetcher(tmp_path, hub.url).fetch(SHARD)


def test_a_slow_hub_is_waited_for(hub, tmp_path):
    hub.faults["model.safetensors"] = "slow"
    Fetcher(tmp_path, hub.url).fetch(SHARD)
    assert problems(tmp_path, deep=True) == []


def test_wrong_content_of_the_right_size_is_refused_and_removed(hub, tmp_path):
    hub.faults["model.safetensors"] = "wrong"
    with pytest.raises(FetchError, match=r"Tiny-VL/model\.safetensors came with sha256 .* instead of"):
        Fetcher(tmp_path, hub.url).fetch(SHARD)
    assert not (tmp_path / "Tiny-VL" / "model.safetensors").exists()
    assert "Tiny-VL/model.safetensors" not in read_lock(tmp_path).files
    hub.faults.clear()
    Fetcher(tmp_path, hub.url).fetch(SHARD)  # and the next run mends it
    assert problems(tmp_path, deep=True) == []


def test_a_small_file_is_checked_by_its_git_sum(hub, tmp_path):
    hub.faults["tokenizer.json"] = "wrong"
    with pytest.raises(FetchError, match=r"tokenizer\.json came with content other than its git sum"):
        Fetcher(tmp_path, hub.url).fetch(SHARD)


def test_what_changed_on_the_hub_since_the_lock_is_refused(hub, tmp_path):
    Fetcher(tmp_path, hub.url).fetch(SHARD)
    (tmp_path / "Tiny-VL" / "model.safetensors").unlink()
    hub.repositories[BASE]["model.safetensors"] = content("other", 50_000)
    with pytest.raises(FetchError, match=rf"differs from {LOCK}"):
        Fetcher(tmp_path, hub.url).fetch(SHARD)


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "a mirror is not sent your hub token"), (403, "refuses access"), (404, "not at http"), (503, "HTTP 503")],
)
def test_a_refusal_is_one_line_that_says_what_to_do(hub, tmp_path, capsys, status, words):
    hub.denied[BASE] = status
    assert main(["--out", str(tmp_path), "--only", "base", "--base_model", BASE, "--mirror", hub.url]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_login_is_asked_for_at_the_hub_itself(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(launch.weights, "HUB", hub.url)
    hub.denied[BASE] = 401
    with pytest.raises(FetchError, match=r"log in \(hf auth login.*accept the licence"):
        Fetcher(tmp_path, hub.url).fetch(SHARD)


def test_the_token_goes_to_a_mirror_only_when_told_so(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (tmp_path / "a").mkdir()
    Fetcher(tmp_path / "a", hub.url).fetch(SHARD)
    assert {authorization for *_, authorization in hub.requests} == {None}
    (tmp_path / "b").mkdir()
    Fetcher(tmp_path / "b", hub.url, send_token=True).fetch(SHARD)
    assert "Bearer hf_secret" in {authorization for *_, authorization in hub.requests}
    assert "hf_secret" not in (tmp_path / "b" / LOCK).read_text()


def test_a_missing_required_file_is_named(hub, tmp_path):
    del hub.repositories[SCORERS]["chexbert.pth"]
    with pytest.raises(FetchError, match=r"has no chexbert\.pth"):
        Fetcher(tmp_path, hub.url).fetch(sources(("chexbert",))[-1])


def test_too_little_room_is_said_before_the_transfer(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(launch.weights, "free_disk", lambda path: 1000)
    with pytest.raises(FetchError, match=r"needs .* free; make room"):
        Fetcher(tmp_path, hub.url).fetch(SHARD)
    assert hub.downloads("model.safetensors") == []


def test_verify_names_what_is_damaged(hub, tmp_path, capsys):
    Fetcher(tmp_path, hub.url).fetch(SHARD)
    path = tmp_path / "Tiny-VL" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert problems(tmp_path) == []  # the size is right
    assert main(["--out", str(tmp_path), "--verify"]) == 1
    assert "Tiny-VL/model.safetensors: sha256 differs" in capsys.readouterr().err
    path.write_bytes(b"short")
    assert "5 bytes instead of 50,000" in problems(tmp_path)[0]


@pytest.mark.parametrize(
    "lock",
    ["{", "[]", '{"complete": [], "files": {"../x": {"size": 1, "sha256": "", "repository": "", "revision": ""}}}'],
)
def test_a_damaged_lock_is_refused(tmp_path, lock):
    (tmp_path / LOCK).write_text(lock)
    with pytest.raises(FetchError, match="is damaged"):
        read_lock(tmp_path)


def test_the_command_says_offline_mode_and_dead_hosts_in_one_line(tmp_path):
    for environment, words in (
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ({"HF_HUB_OFFLINE": "0"}, "transfer from http://127.0.0.1:9 failed"),
    ):
        run = subprocess.run(
            [
                sys.executable,
                "-m",
                "launch.weights",
                "--out",
                str(tmp_path),
                "--only",
                "base",
                "--mirror",
                "http://127.0.0.1:9",
            ],
            cwd=REPOSITORY,
            env=os.environ | environment,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 2
        assert words in run.stderr
        assert "Traceback" not in run.stderr
    assert not (tmp_path / LOCK).exists() or json.loads((tmp_path / LOCK).read_text())
