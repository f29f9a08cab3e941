"""What SFT and GRPO share around a TRL trainer: finished or not, resume, readable progress, the result files."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import resource
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import GRPOConfig, ModelConfig, SFTConfig

from data_prep.files import write_json
from launch.provenance import write_run
from recipes.arguments import DataArguments, RolloutArguments, StageArguments, set_global_batch
from recipes.data import load_studies
from recipes.disk_space import RoomForCheckpoint
from recipes.errors import RecipeError, read_json
from recipes.hub import Upload, open_upload
from recipes.lora import check_lora_targets
from recipes.model_card import write_model_card
from recipes.models import check_model_folder, is_adapter, merge_adapter, model_fingerprint

PACKAGES = ("torch", "trl", "transformers", "accelerate", "datasets", "peft")
# Settings that do not change what is learned: a finished stage is not "made with other settings" for these.
_IRRELEVANT = (
    "output_dir",
    "log",
    "hub",
    "push",
    "run_name",
    "report_to",
    "save",
    "disable_tqdm",
    "dataloader",
    "force",
    "score_cache",
    "rollouts_logged",
    "monitor_",
)
# Settings of the machine: a stage is the same, finished or to go on with, where only these differ (the global batch stays
# the same).
_MACHINE = (
    "per_device_",
    "share_prompts",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "steps_per_generation",
    "generation_batch_size",
    "use_cpu",
    "vllm_",
    "deepspeed",
    "fsdp",
    "accelerator_config",
    "ddp_",
)
_LENGTH = ("max_steps",)  # a run that was interrupted may go on for longer; a finished one has its length
# What a checkpoint holds for training to go on, by transformers, FSDP and DeepSpeed; the model is not among it.
OPTIMIZER_STATE = ("optimizer.pt", "optimizer.bin", "optimizer_0", "global_step*")
OTHER_STATE = ("scheduler.pt", "scaler.pt", "rng_state*.pth", "latest", "zero_to_fp32.py")
TRACKERS = {"wandb": "wandb", "trackio": "trackio", "tensorboard": "tensorboard"}  # report_to → package

_PROGRESS_KEYS = {
    "loss": "loss",
    "reward": "reward",
    "reward_std": "spread",
    "kl": "KL",
    "completions/mean_length": "tokens",
    "mean_token_accuracy": "token accuracy",
}


@dataclass(frozen=True)
class Stage:
    """A training stage that is to be run: checked, its data read, no model loaded.

    Attributes:
        studies: what it trains on, as `load_studies` gives them.
        settings: all that decides what is learned, as `stage_settings` gives it.
        upload: where its model is pushed to once it is trained; None for nowhere.
    """

    output_dir: Path
    studies: list[dict[str, Any]]
    settings: dict[str, Any]
    upload: Upload | None = None

    @property
    def name(self) -> str:
        """`sft`, `rl_step1`, …: the name of its folder."""
        return self.output_dir.name

    @property
    def sources(self) -> set[str]:
        """Names of the data sets that its studies come from."""
        return {study["dataset"] for study in self.studies}


def open_stage(
    data: DataArguments,
    stage: StageArguments,
    model: ModelConfig,
    training: SFTConfig | GRPOConfig,
    rollouts: RolloutArguments | None = None,
    *others: Any,
) -> Stage | None:
    """What SFT and GRPO do before a model is loaded; None where the stage is finished already.

    Args:
        others: further settings that decide what is learned.

    Raises:
        RecipeError: a setting that cannot work, or a finished stage with other settings.
        StudyError: a data set is missing, empty or broken.
    """
    quiet_logs()
    set_global_batch(stage, training, rollouts)
    if not model.model_name_or_path:
        raise RecipeError("model_name_or_path is not set: name the model to start from")
    check_model_folder(model.model_name_or_path)
    check_lora_targets(model)
    studies = load_studies(data.datasets, data.data_dir, data.train_split, data.dataset_weights, training.seed)
    data_sha256 = data_fingerprint(data.datasets, data.data_dir, data.train_split)
    parts = [part for part in (data, rollouts, *others, model, training) if part is not None]
    settings = stage_settings(model.model_name_or_path, data_sha256, *parts)
    sources = {study["dataset"] for study in studies}
    check_report_to(training)
    upload = open_upload(training, sources, model.model_name_or_path, stage.hub_allow_datasets)
    opened = Stage(Path(training.output_dir), studies, settings, upload)
    if not is_finished(opened.output_dir, settings, stage.force):
        return opened
    if upload:
        upload.push()
    return None


def package_versions() -> dict[str, str]:
    """The versions of the packages that decide the numbers."""
    return {name: version(name) for name in PACKAGES}


def data_fingerprint(datasets: Sequence[str], data_dir: str, split: str) -> str:
    """sha256 over the study tables that a stage trains on."""
    digest = hashlib.sha256()
    for name in datasets:
        path = Path(data_dir) / name / f"{split}.parquet"
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def stage_settings(model: str, data_sha256: str, *arguments: Any) -> dict[str, Any]:
    """All settings that decide what a stage learns, flat, as they are written to `result.json` and compared.

    The first process reads the weights, and tells the others their fingerprint: all must call this.
    """
    fingerprint = [model_fingerprint(model) if PartialState().is_main_process else None]
    settings: dict[str, Any] = {"model_sha256": broadcast_object_list(fingerprint)[0], "data_sha256": data_sha256}
    for part in arguments:
        values = part.to_dict() if isinstance(part, TrainingArguments) else asdict(part) if is_dataclass(part) else part
        settings |= {key: value for key, value in values.items() if not key.startswith(_IRRELEVANT)}
    return json.loads(json.dumps(settings, default=str))


def is_finished(output_dir: Path, settings: dict[str, Any], force: bool) -> bool:
    """Whether the stage in `output_dir` has finished with these settings; with `force` its remains are removed first.

    Raises:
        RecipeError: it has finished, but with other settings.
    """
    state = PartialState()
    if force:
        if state.is_main_process:
            shutil.rmtree(output_dir, ignore_errors=True)
        state.wait_for_everyone()
    result_path = output_dir / "result.json"
    if not result_path.is_file():
        return False
    before = read_json(result_path)["settings"]
    if changed := _differences(before, settings, _MACHINE):
        raise RecipeError(
            f"{output_dir} was finished with other settings ({changed}); FORCE=1 trains it again, RUN=name starts another run"
        )
    announce(f"{output_dir}: finished already (FORCE=1 trains it again)")
    return True


def start_or_resume(output_dir: Path, settings: dict[str, Any]) -> str | None:
    """The checkpoint to go on from, or None for a fresh start; says which, and notes the settings of the run.

    A checkpoint whose writing was cut short (a kill, a full disk) lacks its last file, is said so and removed.

    Raises:
        RecipeError: what is in `output_dir` was begun with other settings, such as another model or other data.
    """
    state = PartialState()
    path = output_dir / "settings.json"
    checkpoints = saved_checkpoints(output_dir)
    if checkpoints and path.is_file():
        before = read_json(path)
        if changed := _differences(before, settings, _MACHINE + _LENGTH):
            raise RecipeError(
                f"{output_dir} holds checkpoints of a run with other settings ({changed}); "
                "FORCE=1 starts it again, RUN=name starts another run"
            )
    if state.is_main_process:
        for folder in checkpoints:
            if not _is_complete(folder):
                print(f"{folder}: incomplete, its writing was cut short; removed", flush=True)
                shutil.rmtree(folder)
        write_json(path, settings)
        write_run(output_dir, output_dir.name, settings["seed"], state.num_processes)
    state.wait_for_everyone()
    complete = saved_checkpoints(output_dir)
    if not complete:
        return None
    if not _optimizer_state(complete[-1]):
        raise RecipeError(
            f"{complete[-1]} holds a model without optimiser state, so training cannot go on from it; "
            "FORCE=1 starts it again"
        )
    announce(f"{output_dir}: going on from {complete[-1].name}")
    return str(complete[-1])


def saved_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a stage's folder, by step."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def _optimizer_state(checkpoint: Path) -> list[Path]:
    return [path for pattern in OPTIMIZER_STATE for path in sorted(checkpoint.glob(pattern))]


def _is_complete(checkpoint: Path) -> bool:
    """Whether the trainer finished writing it: `trainer_state.json` is its last file."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True


def check_report_to(training: TrainingArguments) -> None:
    """Raise `RecipeError` unless the trackers of `report_to` are known, installed, and get curves alone.

    Curves are numbers. TRL would also send report text with `log_completions`, and transformers whole checkpoints with
    WANDB_LOG_MODEL.
    """
    trackers = training.report_to or []
    for name in trackers:
        if name not in TRACKERS:
            raise RecipeError(f"report_to: {name} is not one of {', '.join(TRACKERS)}; set one of them, or none")
        if find_spec(TRACKERS[name]) is None:
            raise RecipeError(
                f"report_to: {name} needs a package; pip install {TRACKERS[name]}, or set report_to: none"
            )
    if getattr(training, "log_completions", False) and set(trackers) & {"wandb", "trackio"}:
        raise RecipeError(
            f"log_completions would send report text to {', '.join(trackers)}, which get curves alone; "
            "set log_completions: false (rollouts are kept as Parquet in <stage>/rollouts)"
        )
    log_model = os.environ.get("WANDB_LOG_MODEL", "false").lower()
    if "wandb" in trackers and log_model not in ("false", "0", ""):
        raise RecipeError(
            f"WANDB_LOG_MODEL={log_model} would send checkpoints to wandb, which gets curves alone; unset it "
            "(push_to_hub: true uploads final/)"
        )


class SaveOnSignal(TrainerCallback):
    """SIGTERM or SIGUSR1 (Slurm's warning): the step in progress is finished, a checkpoint saved, training stops.

    Attributes:
        received: the signal that stopped training, or None. A signal to one process stops all.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received: int | None = None
        self.before: dict[int, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._receive) for number in self.SIGNALS}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        (received,) = over_processes([self.received or 0], torch.distributed.ReduceOp.MAX)
        self.received = received or None
        if self.received:
            control.should_save = control.should_training_stop = True
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: Any) -> None:
        self.received = number


def over_processes(values: Sequence[int], operation: torch.distributed.ReduceOp) -> list[int]:
    """Whole numbers reduced over all processes, the same in each: all must call this."""
    state = PartialState()
    if state.num_processes == 1:
        return list(values)
    reduced = torch.tensor(values, device=state.device)
    torch.distributed.all_reduce(reduced, op=operation)
    return reduced.tolist()


class TrimCheckpoints(TrainerCallback):
    """Once a checkpoint is whole, older ones keep their model alone, which is all that selection and evaluation read.

    The newest `keep` stay as they are: a run goes on from the newest. An 8 B model's checkpoint is 130 GB with its optimiser
    state and 18 GB without.
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            whole = [path for path in saved_checkpoints(Path(args.output_dir)) if _is_complete(path)]
            for checkpoint in whole[: -self.keep]:
                trim_checkpoint(checkpoint)


def trim_checkpoint(checkpoint: Path) -> None:
    """Remove what only training needs from a checkpoint that has its whole model as safetensors beside it.

    The optimiser state goes first and at once, so that a checkpoint half trimmed is never taken for one to go on from.
    """
    if not any(checkpoint.glob("*.safetensors")):
        return
    others = [path for pattern in OTHER_STATE for path in checkpoint.glob(pattern)]
    for path in [*_optimizer_state(checkpoint), *others, *checkpoint.glob(".removed-*")]:
        removed = path.with_name(f".removed-{path.name.removeprefix('.removed-')}")
        os.replace(path, removed)
        shutil.rmtree(removed) if removed.is_dir() else removed.unlink()


def run_training(
    trainer: transformers.Trainer, stage: str, checkpoint: str | None, keep_optimizer_states: int | None = None
) -> None:
    """`trainer.train`, with readable progress, from `checkpoint` if there is one; saves first when told to stop.

    Args:
        keep_optimizer_states: how many of the newest checkpoints training could go on from; None for all.

    Raises:
        SystemExit: with 128 + the signal's number, once the checkpoint is saved.
    """
    add_progress(trainer, stage)
    on_signal = SaveOnSignal()
    trainer.add_callback(on_signal)
    if keep_optimizer_states is not None:
        trainer.add_callback(TrimCheckpoints(keep_optimizer_states))
    trainer.add_callback(RoomForCheckpoint())
    trainer.train(resume_from_checkpoint=checkpoint)
    step = trainer.state.global_step
    if on_signal.received and step < trainer.state.max_steps:
        name = signal.Signals(on_signal.received).name
        announce(f"{stage}: {name} received; checkpoint-{step} saved; the same command goes on from there")
        leave_together()
        raise SystemExit(128 + on_signal.received)


def announce(line: str) -> None:
    """Print `line` once, however many processes train."""
    if PartialState().is_main_process:
        print(line, flush=True)


def leave_together() -> None:
    """Wait for all processes and end what they talk through: one that exits with it alive may abort on its way out."""
    state = PartialState()
    if state.num_processes > 1:
        state.wait_for_everyone()
        # Gloo's thread drops the barrier's tensor under Python's lock; were the trainer, and gloo with it, taken down by
        # this thread before, it would hold that lock and wait for gloo's thread for ever (seen once, torch 2.13).
        time.sleep(0.2)
        state.destroy_process_group()


def quiet_logs() -> None:
    """Keep the libraries' routine chatter off a user's screen; warnings and errors stay."""
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # of calls between libraries
    transformers.logging.disable_progress_bar()
    logging.getLogger("httpx").setLevel(logging.WARNING)


class StageProgress(TrainerCallback):
    """One readable line a logging step: step, the principal numbers, time left, this process's peak of GPU memory."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.started = 0.0
        self.first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started = time.monotonic()
        self.first_step = state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        done = state.global_step - self.first_step
        left = (time.monotonic() - self.started) / max(done, 1) * (state.max_steps - state.global_step)
        numbers = [
            f"{name} {float(logs[key]):.3g}" for key, name in _PROGRESS_KEYS.items() if logs.get(key) is not None
        ]
        parts = [
            f"{key.removeprefix('parts/').split('[')[0]} {float(value):.3f}"
            for key, value in logs.items()
            if key.startswith("reward_parts/") and value is not None
        ]
        line = f"{self.stage} step {state.global_step}/{state.max_steps} · " + " · ".join(numbers + parts)
        memory = peak_gpu_memory_mib()
        gpu = f" · GPU {memory['reserved'] / 1024:.1f} GiB" if memory else ""
        print(f"{line} · {format_seconds(left)} left{gpu}", flush=True)


def add_progress(trainer: transformers.Trainer, stage: str) -> None:
    """Replace the trainer's raw dictionaries and bars by `StageProgress`."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(StageProgress(stage))


def format_seconds(seconds: float) -> str:
    """Seconds for people: `45 s`, `3 min 20 s`, `2 h 5 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def finish_stage(trainer: transformers.Trainer, stage: str, settings: dict[str, Any], extra: dict[str, Any]) -> None:
    """Save the final model and processor in `<output_dir>/final`, the log history, and last of all `result.json`."""
    trainer.save_model(str(Path(trainer.args.output_dir) / "final"))
    if trainer.is_world_process_zero():
        _write_result(trainer, stage, settings, extra)
    leave_together()


def _write_result(trainer: transformers.Trainer, stage: str, settings: dict[str, Any], extra: dict[str, Any]) -> None:
    output_dir = Path(trainer.args.output_dir)
    trainer.processing_class.save_pretrained(output_dir / "final")
    (output_dir / "final" / "training_args.bin").unlink(missing_ok=True)  # a pickle, and no part of the model
    merge = {}
    if is_adapter(str(output_dir / "final")):  # the next stage and the evaluation take whole models
        adapter = output_dir / "adapter"
        shutil.rmtree(adapter, ignore_errors=True)
        (output_dir / "final").rename(adapter)
        merge = {"merge": merge_adapter(str(adapter), output_dir / "final")}
    fingerprint = model_fingerprint(str(output_dir / "final"))
    write_model_card(output_dir / "final", fingerprint)
    history = [finite(entry) for entry in trainer.state.log_history if "train_runtime" not in entry]
    write_json(output_dir / "log_history.json", history)
    result = {
        "stage": stage,
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "seconds": next(
            (entry["train_runtime"] for entry in reversed(trainer.state.log_history) if "train_runtime" in entry), None
        ),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        **({"peak_gpu_memory_mib": memory} if (memory := peak_gpu_memory_mib()) else {}),
        "processes": trainer.accelerator.num_processes,
        "final_sha256": fingerprint,
        "last_log": history[-1] if history else None,
        "versions": package_versions(),
        "settings": settings,
        **merge,
        **extra,
    }
    write_json(output_dir / "result.json", result)
    print(f"{stage}: {result['steps']} steps, model in {output_dir / 'final'}")


def peak_gpu_memory_mib() -> dict[str, int]:
    """This process's peak of GPU memory so far in MiB: of its tensors (`allocated`), and of what PyTorch held for them
    (`reserved`). Empty where it uses no GPU."""
    if not torch.cuda.is_initialized():
        return {}
    peaks = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    return {name: peak >> 20 for name, peak in peaks.items()}


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with null for NaN and infinities, which JSON does not have."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }


def _differences(before: dict[str, Any], now: dict[str, Any], ignored: tuple[str, ...]) -> str:
    """The first differences between two runs' settings, in words; empty where only those of these prefixes differ."""
    common = [key for key in now if key in before and not key.startswith(ignored)]
    changed = [key for key in common if before[key] != now[key]]
    return ", ".join(f"{key}: {_short(before[key])} → {_short(now[key])}" for key in changed[:3])


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
