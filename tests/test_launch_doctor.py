"""`make doctor`: what is missing is named with the command that mends it, and the exit status says if a stage can run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import launch.machine
from launch import doctor
from launch.doctor import (
    Check,
    Question,
    can_run,
    check_data,
    check_disk,
    check_gpu_packages,
    check_gpus,
    check_metric_weights,
)
from launch.machine import Gpu, MachineError, port_is_free

REPOSITORY = Path(__file__).resolve().parent.parent
H100 = Gpu("NVIDIA H100 80GB HBM3", 80 * 10**9, 9.0, "580.10")


@pytest.fixture
def question(tmp_path):
    """The paper's recipe, on folders that are empty."""
    return Question(
        "unirg_cxr", doctor.read_recipe("unirg_cxr"), None, None, tmp_path / "data", tmp_path / "weights", tmp_path
    )


def by_name(checks):
    return {check.name: check for check in checks}


def test_no_gpu_is_missing_for_the_paper_and_fine_for_the_demo(question, monkeypatch):
    monkeypatch.setattr(launch.machine, "gpus", lambda: [])
    (check,) = check_gpus(question)
    assert check.status == "missing"
    assert "make demo" in check.mend
    assert not can_run([check], "sft")
    demo = replace(question, recipe="demo", recipes=doctor.read_recipe("demo"))
    (check,) = check_gpus(demo)
    assert check.status == "ok"


def test_fewer_gpus_than_asked_and_too_old_ones_are_named(question, monkeypatch):
    monkeypatch.setattr(launch.machine, "gpus", lambda: [replace(H100, compute_capability=7.5)] * 2)
    checks = by_name(check_gpus(replace(question, gpus=8)))
    assert checks["GPUS="].mend == "GPUS=2"
    assert checks["bfloat16"].status == "missing"
    assert checks["CUDA"].status == "missing"  # the torch of this environment is built for CPUs, or sees none


@pytest.mark.parametrize(
    ("there", "status"), [(None, "missing"), ("0.21.0", "missing"), ("0.30.0+cu130", "ok"), ("0.32.0", "missing")]
)
def test_vllm_must_be_in_the_range_that_trl_takes(question, monkeypatch, there, status):
    monkeypatch.setattr(doctor, "installed", lambda name: there if name == "vllm" else "1.0")
    (check,) = check_gpu_packages(question)
    assert (check.name, check.status) == ("vLLM", status)
    assert check.stages == ("rl_step1", "rl_step2")


def test_data_sets_are_named_one_by_one(question, phantom_data):
    checks = by_name(check_data(question))
    assert checks["data mimic/train"].mend == "make data DATASET=mimic SOURCE=/path/to/mimic"
    assert checks["data mimic/test"].stages == ("eval",)
    demo = replace(question, recipe="demo", recipes=doctor.read_recipe("demo"), data_dir=phantom_data)
    checks = by_name(check_data(demo))
    assert checks["data phantom_prairie/train"].found == "64 studies"
    assert checks["data phantom_summit/train"].status == "missing"


def test_a_damaged_table_is_missing_and_not_a_stack_trace(question, tmp_path):
    folder = tmp_path / "data" / "mimic"
    folder.mkdir(parents=True)
    (folder / "train.parquet").write_bytes(b"PAR1 no parquet")
    check = by_name(check_data(question))["data mimic/train"]
    assert check.status == "missing"
    assert "cannot be read" in check.found


def test_metric_weights_missing_unknown_and_recorded(question):
    (check,) = check_metric_weights(question)
    assert check.status == "missing"
    assert "chexbert.pth" in check.found
    assert "make weights" in check.mend
    folder = question.weights_dir
    files = ("chexbert.pth", "radgraph.tar.gz", "bert-base-uncased/vocab.txt", "distilroberta-base/model.safetensors")
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"weights")
    (check,) = check_metric_weights(question)
    assert check.status == "warning"
    entry = {"repository": "a/b", "revision": "c", "size": 7, "sha256": "0" * 64}
    lock = folder / "weights.lock.json"
    lock.write_text(json.dumps({"complete": [], "files": dict.fromkeys(files, entry)}))
    (check,) = check_metric_weights(question)
    assert check.status == "ok"
    assert "fingerprint" in check.found
    (folder / "chexbert.pth").write_bytes(b"cut")
    (check,) = check_metric_weights(question)
    assert check.status == "missing"
    assert "3 bytes instead of 7" in check.found


def test_a_full_disk_is_said_before_the_first_checkpoint(question, monkeypatch):
    monkeypatch.setattr(launch.machine, "free_disk", lambda path: 10 * 2**30)
    checks = {check.stages[0]: check for check in check_disk(question)}
    assert checks["sft"].status == "missing"
    assert "save_only_model" in checks["sft"].mend
    monkeypatch.setattr(launch.machine, "free_disk", lambda path: 100 * 2**40)
    assert {check.status for check in check_disk(question)} == {"ok"}


def test_a_judge_that_does_not_answer_is_missing_with_the_server_to_start(question):
    recipes = doctor.read_recipe("unirg_cxr")
    recipes["rl_step2"]["judge_base_url"] = "http://127.0.0.1:9/v1"
    (check,) = doctor.check_judge(replace(question, recipes=recipes, stage="rl_step2"))
    assert check.status == "missing"
    assert "make judge-server" in check.mend


def test_a_judge_that_answers_is_ok(question):
    from rewards.offline.judge_server import MODEL, offline_judge_server

    recipes = doctor.read_recipe("unirg_cxr")
    with offline_judge_server() as url:
        recipes["rl_step2"] |= {"judge_base_url": url, "judge_model": MODEL}
        (check,) = doctor.check_judge(replace(question, recipes=recipes, stage="rl_step2"))
    assert check.status == "ok"


def test_versions_that_do_not_go_together_are_found(tmp_path, monkeypatch):
    for name, version, requires in (("first", "1.0", "second>=3,<4"), ("second", "2.5", "absent>1; extra == 'x'")):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: {requires}\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor.version_conflicts(["first", "second"]) == ["first wants second<4,>=3, 2.5 is there"]


def test_the_pins_of_this_environment_are_consistent():
    pins = doctor.pinned(REPOSITORY / "requirements.txt")
    assert {"torch", "trl", "transformers", "accelerate"} <= set(pins)
    constraints = doctor.pinned(REPOSITORY / "constraints.txt")
    assert {name: constraints[name.lower()] for name in pins} == pins


def test_can_run_looks_at_what_the_stage_needs_only():
    checks = [Check("a", "missing", "", "", ("rl_step1",)), Check("b", "warning", "", "", ("sft",))]
    assert can_run(checks, "sft")
    assert not can_run(checks, "rl_step1")


def test_a_driver_that_fails_is_told(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'\nexit 18\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(MachineError, match="version mismatch"):
        launch.machine.gpus()


@pytest.mark.parametrize(
    ("answer", "status", "visible", "memories"),
    [
        (["GPU-aa, NVIDIA A100-SXM4-80GB, 81920, 8.0, 570.1", "GPU-bb, NVIDIA A100, 40960, 8.0, 570.1"], 0, None, [81920, 40960]),
        (["GPU-aa, A100, 81920, 8.0, 570.1", "GPU-bb, A100, 40960, 8.0, 570.1"], 0, "1", [40960]),
        (["GPU-aa, A100, 81920, 8.0, 570.1", "GPU-bb, A100, 40960, 8.0, 570.1"], 0, "GPU-bb", [40960]),
        (["GPU-aa, A100, 81920, 8.0, 570.1"], 0, "MIG-cc,MIG-dd", [None, None]),
        (["GPU-aa, A100, 81920, 8.0, 570.1", "GPU-bb, A100, 40960, 8.0, 570.1"], 0, "0,-1,1", [81920]),
        (["GPU-aa, A100, 81920, 8.0, 570.1"], 0, "-1", []),
        (["GPU-aa, A100, 81920, 8.0, 570.1"], 0, "", []),
        (["GPU-aa, NVIDIA GB10, [N/A], 12.1, 580.1"], 0, None, [None]),
        (["No devices were found"], 0, None, []),
        (["No devices were found"], 6, None, []),
    ],
)  # fmt: skip
def test_gpus_are_those_that_the_driver_and_cuda_visible_devices_show(
    tmp_path, monkeypatch, answer, status, visible, memories
):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in answer) + f"exit {status}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    wanted = [None if memory is None else memory * 2**20 for memory in memories]
    assert [gpu.memory for gpu in launch.machine.gpus()] == wanted
    question = Question("demo", {"sft": {}}, "sft", None, tmp_path, tmp_path, tmp_path)
    assert list(check_gpus(question))  # what is not known does not stop it


def test_a_port_in_use_is_seen():
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert not port_is_free(port)
    assert port_is_free(port)


def test_the_command_by_exit_status_and_json(tmp_path):
    command = [sys.executable, "-m", "launch.doctor", "--recipe", "demo", "--stage", "sft", "--no-network", "--json"]
    command += ["--data_dir", str(tmp_path)]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    answer = json.loads(run.stdout)
    assert answer["can_run"] == {"sft": False}  # no data there
    assert run.returncode == 1
    missing = [check for check in answer["checks"] if check["status"] == "missing"]
    assert missing
    assert all(check["mend"] for check in missing)
    run = subprocess.run([*command[:4], "nothing"], cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("error: no recipe 'nothing'")


def test_it_runs_where_nothing_is_installed(tmp_path):
    """A bare interpreter, as before `make setup`: no third-party package can be imported."""
    run = subprocess.run(
        [sys.executable, "-S", "-m", "launch.doctor", "--recipe", "demo", "--no-network", "--data_dir", str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1, run.stderr
    assert "not installed: torch" in run.stdout
    assert "make setup" in run.stdout
    assert "Traceback" not in run.stderr
