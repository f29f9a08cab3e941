"""`make doctor`: what is missing is named with the command that mends it, and the exit status says if a stage can run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import foundation.machine
from foundation.machine import Gpu, MachineError, port_is_free
from launch import doctor
from launch.checks import gpus as gpu_checks
from launch.checks.gpus import check_data_disk, check_gpu_packages, check_gpus, check_plan, planned
from launch.checks.packages import pinned, version_conflicts
from launch.checks.question import Check, Question
from launch.checks.servers import check_generation_server, check_judge
from launch.checks.stages import check_data, check_earlier_stage
from launch.checks.weights import check_base_model, check_judge_weights, check_metric_weights, check_ratescore
from launch.doctor import can_run
from launch.weights import sources

REPOSITORY = Path(__file__).resolve().parents[2]
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
    monkeypatch.setattr(foundation.machine, "gpus", lambda: [])
    (check,) = check_gpus(question)
    assert check.status == "missing"
    assert "make demo" in check.mend
    assert not can_run([check], "sft")
    demo = replace(question, recipe="demo", recipes=doctor.read_recipe("demo"))
    (check,) = check_gpus(demo)
    assert check.status == "ok"


def test_fewer_gpus_than_asked_and_too_old_ones_are_named(question, monkeypatch):
    monkeypatch.setattr(foundation.machine, "gpus", lambda: [replace(H100, compute_capability=7.5)] * 2)
    checks = by_name(check_gpus(replace(question, gpus=8)))
    assert checks["GPUS="].mend == "GPUS=2"
    assert checks["bfloat16"].status == "missing"
    assert checks["CUDA"].status == "missing"  # the torch of this environment is built for CPUs, or sees none


@pytest.mark.parametrize(
    ("there", "status"), [(None, "missing"), ("0.21.0", "missing"), ("0.30.0+cu130", "ok"), ("0.32.0", "missing")]
)
def test_vllm_must_be_in_the_range_that_trl_takes(question, monkeypatch, there, status):
    monkeypatch.setattr(gpu_checks, "installed", lambda name: there if name == "vllm" else "1.0")
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
    assert check.status == "missing"
    assert "has not arrived as a whole" in check.found
    complete = [source.key for source in sources(("chexbert", "radgraph", "bertscore"))]
    lock.write_text(json.dumps({"complete": complete, "files": dict.fromkeys(files, entry)}))
    (check,) = check_metric_weights(question)
    assert check.status == "ok"
    assert "fingerprint" in check.found
    (folder / "chexbert.pth").write_bytes(b"cut")
    (check,) = check_metric_weights(question)
    assert check.status == "missing"
    assert "3 bytes instead of 7" in check.found


def test_a_full_disk_is_said_before_the_first_checkpoint(question, monkeypatch):
    """What make plan counts: the two best checkpoints of step 1 and the newest, which alone is whole."""
    monkeypatch.setattr(foundation.machine, "free_disk", lambda path: 500 * 2**30)
    assert {check.status for check in check_plan(question)} == {"ok"}
    monkeypatch.setattr(foundation.machine, "free_disk", lambda path: 100 * 2**30)
    checks = by_name(check_plan(question))
    assert checks["disk for rl_step1"].status == "missing"
    assert "3 checkpoint(s) and the final model take 163.3 GiB" in checks["disk for rl_step1"].found
    assert "save_only_model" in checks["disk for rl_step1"].mend
    monkeypatch.setattr(foundation.machine, "free_disk", lambda path: 100 * 2**40)
    assert {check.status for check in check_plan(question)} == {"ok"}


def with_gpus(monkeypatch, count, memory=80 * 10**9):
    for name in ("gpus", "all_gpus"):
        monkeypatch.setattr(foundation.machine, name, lambda: [replace(H100, memory=memory)] * count)


def test_memory_of_the_gpus_is_compared_with_the_plan(question, monkeypatch):
    monkeypatch.setattr(foundation.machine, "free_disk", lambda path: 100 * 2**40)
    with_gpus(monkeypatch, 8, 24 * 2**30)
    checks = by_name(check_plan(replace(question, parallel="fsdp2")))
    assert checks["GPU memory for sft"].status == "missing"
    assert "of 24.0 GiB" in checks["GPU memory for sft"].found
    assert "LoRA" in checks["GPU memory for sft"].mend
    assert not can_run(list(checks.values()), "sft")
    with_gpus(monkeypatch, 8)
    checks = by_name(check_plan(question))
    assert {checks[f"GPU memory for {stage}"].status for stage in ("sft", "rl_step1", "rl_step2")} == {"ok"}
    with_gpus(monkeypatch, 1, None)
    assert "GPU memory for sft" not in by_name(check_plan(question))  # the driver does not say


def test_a_batch_that_does_not_divide_is_missing_and_not_a_stack_trace(question, monkeypatch):
    with_gpus(monkeypatch, 3)
    check = by_name(check_plan(question))["plan of sft"]
    assert check.status == "missing"
    assert "does not divide" in check.found


def test_a_variant_is_asked_about_as_such(question, monkeypatch):
    with_gpus(monkeypatch, 1, 24 * 2**30)
    lora = replace(question, recipes=doctor.read_recipe("unirg_cxr", "lora"), variant="lora")
    assert lora.recipes["sft"]["use_peft"] is True
    assert lora.recipes["eval"]["split"] == "test"
    assert "adapter" in planned(lora, "sft").memory
    (check,) = check_earlier_stage(replace(lora, stage="rl_step1", run=Path("outputs/unirg_cxr_lora")))
    assert check.found == "no model in outputs/unirg_cxr_lora/sft/final"
    assert check.mend == "make sft RECIPE=unirg_cxr VARIANT=lora"
    with pytest.raises(MachineError, match=r"no variant 'lorra'; it has .*sft_lora, "):
        doctor.read_recipe("unirg_cxr", "lorra")


def test_a_stage_that_the_recipe_lacks_is_missing(question, monkeypatch):
    with_gpus(monkeypatch, 8)
    completions = replace(question, recipes=doctor.read_recipe("unirg_cxr", "completions"), variant="completions")
    checks = doctor.examine(replace(completions, network=False))
    assert by_name(checks)["recipe of sft"].found == "recipes/unirg_cxr has no sft_completions.yaml, so no sft"
    assert not can_run(checks, "sft")


def test_deepspeed_is_looked_for_where_several_gpus_are(question, monkeypatch):
    monkeypatch.setattr(gpu_checks, "installed", lambda name: None if name == "deepspeed" else "0.30.0")
    with_gpus(monkeypatch, 1)
    assert "DeepSpeed" not in by_name(check_gpu_packages(question))
    with_gpus(monkeypatch, 2)
    assert by_name(check_gpu_packages(question))["DeepSpeed"].status == "warning"
    assert by_name(check_gpu_packages(replace(question, parallel="zero3")))["DeepSpeed"].status == "missing"
    assert "DeepSpeed" not in by_name(check_gpu_packages(replace(question, gpus=1)))


def test_the_generation_server_is_asked_for_its_models(question):
    recipes = doctor.read_recipe("unirg_cxr")
    recipes["rl_step1"] |= {"vllm_mode": "server", "vllm_server_base_url": "http://127.0.0.1:9"}
    (check,) = check_generation_server(replace(question, recipes=recipes))
    assert (check.status, check.mend) == ("missing", "make vllm-server")
    from rewards.offline.judge_server import MODEL, offline_judge_server

    with offline_judge_server() as url:
        recipes["rl_step1"]["vllm_server_base_url"] = url.removesuffix("/v1")
        (check,) = check_generation_server(replace(question, recipes=recipes))
    assert check.status == "ok"
    assert MODEL in check.found


def test_shards_of_the_base_model_are_all_there_or_named(question):
    folder = question.weights_dir / "Qwen3-VL-8B-Instruct"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-1.safetensors").write_bytes(b"1")
    (check,) = check_base_model(question)
    assert check.status == "missing"
    assert "model-2.safetensors is not there" in check.found
    (folder / "model-2.safetensors").write_bytes(b"2")
    (check,) = check_base_model(question)
    assert check.status == "ok"
    entry = {"repository": "Qwen/Qwen3-VL-8B-Instruct", "revision": "c", "size": 1, "sha256": "0" * 64}
    lock = {"complete": [], "files": {f"{folder.name}/model-1.safetensors": entry}}
    path = question.weights_dir / "weights.lock.json"
    path.write_text(json.dumps(lock))
    (check,) = check_base_model(question)
    assert check.status == "missing"
    assert "has not arrived as a whole" in check.found
    path.write_text(json.dumps(lock | {"complete": ["Qwen/Qwen3-VL-8B-Instruct *.json *.safetensors"]}))
    (check,) = check_base_model(question)
    assert check.status == "ok"
    assert "fingerprint" in check.found


def test_ratescore_is_optional_unless_it_is_watched(question):
    (check,) = check_ratescore(question)
    assert (check.status, check.stages) == ("warning", ("eval",))
    recipes = doctor.read_recipe("unirg_cxr")
    recipes["rl_step1"]["monitor_heldout"] = "ratescore"
    (check,) = check_ratescore(replace(question, recipes=recipes))
    assert (check.status, check.stages) == ("missing", ("rl_step1",))


def test_room_for_the_data_sets_that_are_not_prepared(question, phantom_data, monkeypatch):
    monkeypatch.setattr(foundation.machine, "free_disk", lambda path: 10 * 2**30)
    (check,) = check_data_disk(question)
    assert (check.status, check.stages) == ("missing", ("data",))
    assert "mimic" in check.found
    recipes = {"sft": {"datasets": ["phantom_prairie"]}}
    (check,) = check_data_disk(replace(question, recipes=recipes, data_dir=phantom_data))
    assert check.status == "ok"


def test_a_judge_that_does_not_answer_is_missing_with_the_server_to_start(question, monkeypatch):
    recipes = doctor.read_recipe("unirg_cxr")
    recipes["rl_step2"]["judge_base_url"] = "http://127.0.0.1:9/v1"
    (check,) = check_judge(replace(question, recipes=recipes, stage="rl_step2"))
    assert check.status == "missing"
    assert "make judge-server" in check.mend
    with_gpus(monkeypatch, 8)
    (check,) = check_judge(replace(question, recipes=recipes, stage="rl_step2"))
    assert "CUDA_VISIBLE_DEVICES=4,5,6,7 DATA_PARALLEL=4 make judge-server" in check.mend
    with_gpus(monkeypatch, 1)
    (check,) = check_judge(replace(question, recipes=recipes, stage="rl_step2"))
    assert "the only GPU here trains" in check.mend


def test_a_judge_that_answers_is_ok(question):
    from rewards.offline.judge_server import MODEL, offline_judge_server

    recipes = doctor.read_recipe("unirg_cxr")
    with offline_judge_server() as url:
        recipes["rl_step2"] |= {"judge_base_url": url, "judge_model": MODEL}
        (check,) = check_judge(replace(question, recipes=recipes, stage="rl_step2"))
    assert check.status == "ok"


def test_versions_that_do_not_go_together_are_found(tmp_path, monkeypatch):
    for name, version, requires in (("first", "1.0", "second>=3,<4"), ("second", "2.5", "absent>1; extra == 'x'")):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: {requires}\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    assert version_conflicts(["first", "second"]) == ["first wants second<4,>=3, 2.5 is there"]


def test_the_pins_of_this_environment_are_consistent():
    pins = pinned(REPOSITORY / "requirements.txt")
    assert {"torch", "trl", "transformers", "accelerate"} <= set(pins)
    constraints = pinned(REPOSITORY / "constraints.txt")
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
        foundation.machine.gpus()


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
    assert [gpu.memory for gpu in foundation.machine.gpus()] == wanted
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


@pytest.mark.parametrize("recipe", ["demo", "unirg_cxr"])
def test_it_runs_where_nothing_is_installed(tmp_path, recipe):
    """A bare interpreter, as before `make setup`: no third-party package can be imported."""
    command = [
        sys.executable,
        "-S",
        "-m",
        "launch.doctor",
        "--recipe",
        recipe,
        "--no-network",
        "--data_dir",
        str(tmp_path),
    ]
    command += ["--judge_base_url", "http://127.0.0.1:9/v1", "--gpus", "2"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 1, run.stderr
    assert "not installed: torch" in run.stdout
    assert "make setup" in run.stdout
    assert "Traceback" not in run.stderr


def test_the_judges_weights_are_looked_for_where_make_weights_puts_them(question):
    (check,) = check_judge_weights(question)
    assert (check.status, check.stages) == ("warning", ("rl_step2",))
    assert check.mend.endswith('ARGS="--only judge --judge_model Qwen/Qwen3-30B-A3B-Instruct-2507"')
    folder = question.weights_dir / "Qwen3-30B-A3B-Instruct-2507"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (check,) = check_judge_weights(question)
    assert check.status == "missing"
    (folder / "model.safetensors").write_bytes(b"")
    (check,) = check_judge_weights(question)
    assert check.status == "ok"
    elsewhere = dict(question.recipes)
    elsewhere["rl_step2"] = elsewhere["rl_step2"] | {"judge_base_url": "http://judge0:8001/v1"}
    assert list(check_judge_weights(replace(question, recipes=elsewhere))) == []
