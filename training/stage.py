"""What SFT and GRPO share around a TRL trainer: finished or not, resume, readable progress, the result files."""

from __future__ import annotations

import contextlib
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
from concurrent.futures import Future, ThreadPoolExecutor
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

from common.errors import RecipeError, read_json
from common.files import write_json
from common.locks import hold_folder
from common.provenance import write_run
from common.removal import remove_own
from common.signals import STOPPING, handled
from data_prep.prepared import Studies, check_images, load_studies
from model.card import write_model_card
from model.checkpoint_files import (
    MANIFEST,
    OPTIMIZER_STATE,
    OTHER_STATE,
    checkpoint_damage,
    damaged_file,
    described_files,
    forget_in_manifest,
    write_manifest,
)
from model.films import FilmForm, RecordForm, check_form, common_form, write_form
from model.loading import (
    check_model_folder,
    check_tensors,
    is_adapter,
    load_processor,
    merge_adapter,
    model_fingerprint,
)
from model.lora import check_lora_targets
from settings.arguments import DataArguments, RolloutArguments, StageArguments, set_global_batch
from settings.keys import check_packages
from training.disk_space import RoomForCheckpoint
from training.finite import StopNotFinite
from training.gradients import EveryTensorLearns
from training.hub import Upload, open_upload
from training.lengths import counted_once, fitting
from training.processes import in_first_process, leave_together, over_processes
from training.step_times import PREFIX as SECONDS

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
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context",
    "dataloader_in_order",
    "force",
    "score_cache",
    "rollouts_logged",
    "monitor_",
)
# Settings of the machine: a stage is the same, finished or to go on with, where only these differ. Of the batch its
# products are compared (`_batch_products`), not the factors.
_MACHINE = (
    "per_device_",
    "share_prompts",
    "gradient_accumulation_steps",
    "global_batch_size",
    "batch_counts",
    "updates_per_generation",
    "gradient_checkpointing",
    "steps_per_generation",
    "generation_batch_size",
    "use_cpu",
    "vllm_mode",
    "vllm_model_impl",
    "vllm_enable_sleep_mode",
    "vllm_server_",
    "vllm_group_port",
    "vllm_gpu_memory_utilization",
    "vllm_max_model_length",
    "vllm_tensor_parallel_size",
    "deepspeed",
    "fsdp",
    "accelerator_config",
    "ddp_",
)
_LENGTH = ("max_steps",)  # a run that was interrupted may go on for longer; a finished one has its length
# What a stage writes in its folder, result.json first: all that FORCE=1 removes.
_OWN = (
    "result.json",
    "settings.json",
    "checkpoint-*",
    ".removed-checkpoint-*",
    "damaged-checkpoint-*",
    "final",
    "adapter",
    "best",
    "selection",
    "selection.json",
    "rollouts",
    "completions",
    "runs",
    "log_history.json",
    "stopped.json",
    "README.md",
    "run.patch",
    "run.json",
    ".*.tmp",
)
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
        repeated: studies that an epoch has twice, so that its last generation, or batch of all processes, is full.
    """

    output_dir: Path
    studies: Studies
    settings: dict[str, Any]
    upload: Upload | None = None
    repeated: int = 0

    @property
    def name(self) -> str:
        """`sft`, `rl_step1`, …: the name of its folder."""
        return self.output_dir.name

    @property
    def sources(self) -> set[str]:
        """Names of the data sets that its studies come from."""
        return self.studies.sources


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
    check_packages(model, training)
    check_revision(model)
    check_model_folder(model.model_name_or_path)
    if not Path(model.model_name_or_path).is_dir():
        check_tensors(model.model_name_or_path, model.model_revision)
    check_lora_targets(model, getattr(training, "use_vllm", False))
    studies = load_studies(data.datasets, data.data_dir, data.train_split, data.dataset_weights, training.seed)
    data_sha256 = in_first_process(lambda: data_fingerprint(data.datasets, data.data_dir, data.train_split))
    fit = in_first_process(lambda: _fitting(studies, data, model, training, data_sha256))
    if len(fit) < len(studies):
        studies = Studies(studies.table.take(fit))
    repeated = check_rows(len(studies), training)
    parts = [part for part in (data, rollouts, *others, model, training) if part is not None]
    films = common_form([Path(data.data_dir) / name for name in data.datasets])
    check_form(model.model_name_or_path, films, "the data")
    settings = stage_settings(model.model_name_or_path, data_sha256, *parts) | {"studies_trained_on": len(studies)}
    if films:
        settings["films"] = asdict(films)
    check_report_to(training)
    upload = open_upload(training, studies.sources, model.model_name_or_path, stage.hub_allow_datasets)
    opened = Stage(Path(training.output_dir), studies, settings, upload, repeated)
    # A finished stage is only read; one that is to be made is this process's alone until it ends.
    if stage.force or not is_finished(opened.output_dir, settings):
        in_first_process(lambda: hold_folder(opened.output_dir))
        in_first_process(lambda: check_images(studies, data.longitudinal))
        if stage.force:
            in_first_process(lambda: remove_stage(opened.output_dir, settings))
        return opened
    if upload:
        upload.push()
    return None


def _fitting(
    studies: Studies, data: DataArguments, model: ModelConfig, training: SFTConfig | GRPOConfig, data_sha256: str
) -> list[int]:
    """Row numbers of the studies whose prompt and report fit; says how long the longest is, and what is left out."""
    processor = load_processor(model.model_name_or_path, revision=model.model_revision)
    folder = Path(training.output_dir).parent / "lengths"
    lengths = counted_once(studies, processor, data.longitudinal, data.context, data_sha256, folder)
    rows, line = fitting(studies.table.column("study_id").to_pylist(), lengths, training)
    print(f"{Path(training.output_dir).name}: {line}", flush=True)
    return rows


def check_rows(studies: int, training: SFTConfig | GRPOConfig) -> int:
    """How many studies an epoch has twice: those that fill GRPO's last generation, or the last rows of all processes.

    Raises:
        RecipeError: there are fewer studies than a generation or a batch of all processes takes.
    """
    at_once = training.per_device_train_batch_size * training.world_size
    if isinstance(training, GRPOConfig):
        prompts = at_once * training.steps_per_generation // training.num_generations
        if studies < prompts:
            raise RecipeError(
                f"{studies:,} studies are fewer than the {prompts:,} of a generation ({at_once * training.steps_per_generation:,} "
                f"completions, {training.num_generations} a study); lower global_batch_size or updates_per_generation"
            )
        return -studies % prompts
    return 0 if training.dataloader_drop_last or training.world_size == 1 else -studies % at_once


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
        if isinstance(part, SFTConfig | GRPOConfig):
            settings |= _batch_products(part)
    return json.loads(json.dumps(settings, default=str))


def _batch_products(training: SFTConfig | GRPOConfig) -> dict[str, int]:
    """Rows (in GRPO completions) of an optimiser step over all processes, and of a generation."""
    at_once = training.per_device_train_batch_size * training.world_size
    products = {"rows_an_update": at_once * training.gradient_accumulation_steps}
    if isinstance(training, GRPOConfig):
        products["rows_a_generation"] = at_once * training.steps_per_generation
    return products


def check_revision(model: ModelConfig) -> None:
    """Raise `RecipeError` for a model_revision of a folder, which has none."""
    if model.model_revision != "main" and Path(model.model_name_or_path).is_dir():
        raise RecipeError(
            f"model_revision: {model.model_revision!r} is a version on the hub, and {model.model_name_or_path} is a folder; "
            "take it out, or set model_name_or_path to the hub's name"
        )


def is_finished(output_dir: Path, settings: dict[str, Any]) -> bool:
    """Whether the stage in `output_dir` has finished with these settings, and its model is there as it was saved.

    Raises:
        RecipeError: it has finished, but with other settings; or its model is damaged, and no checkpoint makes it again.
    """
    result_path = output_dir / "result.json"
    if not result_path.is_file():
        return False
    result = read_json(result_path)
    if not isinstance(result, dict) or not isinstance(result.get("settings"), dict):
        raise RecipeError(
            f"{result_path} is not a stage's result; FORCE=1 trains it again, RUN=name starts another run"
        )
    if changed := _differences(result["settings"], settings, _MACHINE):
        raise RecipeError(
            f"{output_dir} was finished with other settings ({changed}); FORCE=1 trains it again, RUN=name starts another run"
        )
    if damage := in_first_process(lambda: _damage_to_final(output_dir / "final", result)):
        if not saved_checkpoints(output_dir):
            raise RecipeError(
                f"{damage}, though {output_dir} was finished; put that file back, or FORCE=1 trains it again"
            )
        announce(f"{output_dir}: {damage}; saving the model again from its last checkpoint")
        return False
    announce(f"{output_dir}: finished already (FORCE=1 trains it again)")
    return True


def _damage_to_final(final: Path, result: Mapping[str, Any]) -> str | None:
    """What differs from what `result.json` says of the final model; None where nothing does."""
    if isinstance(result.get("final_files"), dict):
        return damaged_file(final, result["final_files"])
    if not any(final.glob("*.safetensors")):  # of before its files were noted
        return f"{final} holds no model"
    return None if model_fingerprint(str(final)) == result.get("final_sha256") else f"{final} holds another model"


def remove_stage(output_dir: Path, settings: Mapping[str, Any]) -> None:
    """Remove what a stage wrote in `output_dir`, by its names, and nothing else.

    Raises:
        RecipeError: the folder is not a stage's, the run's own model or data lie in it, or something cannot be removed.
    """
    needed = {key: settings[key] for key in ("model_name_or_path", "data_dir") if settings.get(key)}
    remove_own(output_dir, _OWN, _is_stage(output_dir), needed, "FORCE=1")


def _is_stage(folder: Path) -> bool:
    """Whether a stage wrote here: it leaves its settings, its result and how it was run."""
    for name, key in (("settings.json", "data_sha256"), ("result.json", "settings"), ("run.json", "runs")):
        try:
            read_json(folder / name, key)
        except (RecipeError, OSError):
            continue
        return True
    return False


def start_or_resume(output_dir: Path, settings: dict[str, Any]) -> str | None:
    """The checkpoint to go on from, or None for a fresh start; says which, and notes the settings of the run.

    Raises:
        RecipeError: what is in `output_dir` was begun with other settings, such as another model or other data.
    """
    return in_first_process(lambda: _start_or_resume(output_dir, settings))


def _start_or_resume(output_dir: Path, settings: dict[str, Any]) -> str | None:
    path = output_dir / "settings.json"
    if saved_checkpoints(output_dir):
        before = read_json(path) if path.is_file() else None
        if before is None:
            raise RecipeError(
                f"{output_dir} holds checkpoints and no settings.json that says how they were made; "
                "FORCE=1 starts it again, RUN=name starts another run"
            )
        if changed := _differences(before, settings, _MACHINE + _LENGTH):
            raise RecipeError(
                f"{output_dir} holds checkpoints of a run with other settings ({changed}); "
                "FORCE=1 starts it again, RUN=name starts another run"
            )
    newest = newest_whole_checkpoint(output_dir)
    write_json(path, settings)
    write_run(output_dir, output_dir.name, settings["seed"], PartialState().num_processes)
    if newest is None:
        return None
    if not _optimizer_state(newest):
        raise RecipeError(
            f"{newest} holds a model without optimiser state, so training cannot go on from it; FORCE=1 starts it again"
        )
    print(f"{output_dir}: going on from {newest.name}", flush=True)
    return str(newest)


def newest_whole_checkpoint(output_dir: Path) -> Path | None:
    """The checkpoint to go on from; newer ones that are not whole are said so and put out of the way.

    One whose writing was cut short is removed, one that was damaged later is kept as `damaged-checkpoint-<step>`.
    """
    for folder in reversed(saved_checkpoints(output_dir)):
        damage = checkpoint_damage(folder)
        if damage is None:
            return folder
        if (folder / MANIFEST).is_file():
            kept = folder.with_name(f"damaged-{folder.name}")
            shutil.rmtree(kept, ignore_errors=True)
            os.replace(folder, kept)
            print(f"{folder.name} is damaged: {damage}; kept as {kept.name}, which nothing reads", flush=True)
        else:
            shutil.rmtree(folder)
            print(f"{folder}: incomplete ({damage}); removed", flush=True)
    return None


def saved_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a stage's folder, by step."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def _optimizer_state(checkpoint: Path) -> list[Path]:
    return [path for pattern in OPTIMIZER_STATE for path in sorted(checkpoint.glob(pattern))]


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
    """Ctrl-C, SIGTERM, SIGHUP or SIGUSR1 (Slurm's warning): the step in progress is finished, a checkpoint saved, training
    stops. A second one ends the process at once.

    Attributes:
        received: the signal that stopped training, or None. A signal to one process stops all.
    """

    SIGNALS = (*STOPPING, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received: int | None = None
        self.handlers = contextlib.ExitStack()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            self.handlers.enter_context(handled(self._receive, self.SIGNALS))

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
        self.handlers.close()

    def _receive(self, number: int) -> None:
        if self.received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = number


class RecordCheckpoints(TrainerCallback):
    """Gives each checkpoint its manifest, by which it counts as whole; then older ones keep their model alone.

    The sums are made while training goes on. The newest `keep` stay as they are (None: all do): a run goes on from the newest.
    An 8 B model's checkpoint is 130 GB with its optimiser state and 18 GB without.
    """

    def __init__(self, keep: int | None = None) -> None:
        self.keep = keep
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="manifest")
        self.pending: list[Future[None]] = []

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._finish([future for future in self.pending if future.done()])
            folder = Path(args.output_dir)
            self.pending.append(self.worker.submit(self._record, folder / f"checkpoint-{state.global_step}"))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.wait()

    def wait(self) -> None:
        """Return once all manifests are written and older checkpoints trimmed."""
        self._finish(list(self.pending))

    def _finish(self, done: Sequence[Future[None]]) -> None:
        for future in done:
            self.pending.remove(future)
            try:
                future.result()
            except OSError as error:
                raise RecipeError(
                    f"{error.filename or 'the manifest of a checkpoint'}: {error.strerror}; make room or mend the disk, and "
                    "run the same command again"
                ) from error

    def _record(self, checkpoint: Path) -> None:
        try:
            write_manifest(checkpoint)
        except FileNotFoundError:
            if checkpoint.is_dir():
                raise
            return  # save_total_limit took it away meanwhile
        if self.keep is not None:
            whole = [path for path in saved_checkpoints(checkpoint.parent) if (path / MANIFEST).is_file()]
            for older in whole[: -self.keep]:
                trim_checkpoint(older)


def trim_checkpoint(checkpoint: Path) -> None:
    """Remove what only training needs from a checkpoint that has its whole model as safetensors beside it.

    The optimiser state goes first and at once, so that a checkpoint half trimmed is never taken for one to go on from.
    """
    if not any(checkpoint.glob("*.safetensors")):
        return
    others = [path for pattern in OTHER_STATE for path in checkpoint.glob(pattern)]
    forget_in_manifest(checkpoint, [*_optimizer_state(checkpoint), *others])
    for path in [*_optimizer_state(checkpoint), *others, *checkpoint.glob(".removed-*")]:
        removed = path.with_name(f".removed-{path.name.removeprefix('.removed-')}")
        os.replace(path, removed)
        shutil.rmtree(removed) if removed.is_dir() else removed.unlink()


def run_training(
    trainer: transformers.Trainer,
    stage: str,
    checkpoint: str | None,
    keep_optimizer_states: int | None = None,
    *callbacks: TrainerCallback,
) -> None:
    """`trainer.train`, with readable progress, from `checkpoint` if there is one; saves first when told to stop.

    Args:
        keep_optimizer_states: how many of the newest checkpoints training could go on from; None for all.
        callbacks: called after those that every stage has.

    Raises:
        SystemExit: with 128 + the signal's number, once the checkpoint is saved.
    """
    add_progress(trainer, stage)
    on_signal = SaveOnSignal()
    trainer.add_callback(on_signal)
    trainer.add_callback(RecordCheckpoints(keep_optimizer_states))
    trainer.add_callback(StopNotFinite(trainer))
    trainer.add_callback(RoomForCheckpoint())
    trainer.add_callback(EveryTensorLearns())
    trainer.add_callback(RecordForm(form_of_stage(Path(trainer.args.output_dir))))
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=checkpoint)
    step = trainer.state.global_step
    if on_signal.received and step < trainer.state.max_steps:
        name = signal.Signals(on_signal.received).name
        announce(f"{stage}: {name} received; checkpoint-{step} saved; the same command goes on from there")
        leave_together()
        raise SystemExit(128 + on_signal.received)


def form_of_stage(output_dir: Path) -> FilmForm | None:
    """The form of the films that a stage trains on, as its settings have it."""
    path = output_dir / "settings.json"
    films = read_json(path).get("films") if path.is_file() else None
    return FilmForm(**films) if films else None


def announce(line: str) -> None:
    """Print `line` once, however many processes train."""
    if PartialState().is_main_process:
        print(line, flush=True)


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
        spent = {key.removeprefix(SECONDS): value for key, value in logs.items() if key.startswith(SECONDS)}
        parts += [f"{part} {seconds:.1f} s" for part, seconds in spent.items() if seconds >= 0.05]
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
    if trainer.state.global_step == 0:
        raise RecipeError(
            f"{stage}: no step was trained; check datasets, num_train_epochs, max_steps and the size of the batch"
        )
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
    write_form(output_dir / "final", FilmForm(**settings["films"]) if "films" in settings else None)
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
        # Not the card, into which an evaluation writes its scores.
        "final_files": {
            name: file for name, file in described_files(output_dir / "final").items() if name != "README.md"
        },
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
