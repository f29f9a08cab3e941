"""What SFT and GRPO share around a TRL trainer: finished or not, resume, readable progress, the result files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl import GRPOConfig, ModelConfig, SFTConfig

from data_prep.prepared import Studies, check_images, load_studies
from foundation.errors import RecipeError
from foundation.locks import hold_folder
from model.check import check_model_folder, check_tensors
from model.films import check_form, common_form
from model.lora import check_lora_targets
from model.processor import load_processor
from settings.arguments import DataArguments, RolloutArguments, StageArguments
from settings.batch import set_global_batch
from settings.keys import check_packages
from training.finished import data_fingerprint, is_finished, remove_stage, stage_settings
from training.hub import Upload, open_upload
from training.lengths import counted_once, fitting
from training.processes import in_first_process
from training.progress import quiet_logs
from training.trackers import check_report_to


@dataclass(frozen=True)
class Stage:
    """A training stage that is to be run: checked, its data read, no model loaded.

    Attributes:
        studies: what it trains on, as `load_studies` gives them.
        settings: all that decides what is learned, as `stage_settings` gives it.
        upload: where its model is pushed to once it is trained; None for nowhere.
        repeated: studies that an epoch has twice, so that its last generation, or batch of all processes, is full.
        lengths: tokens of each study, its prompt's and its report's.
    """

    output_dir: Path
    studies: Studies
    settings: dict[str, Any]
    upload: Upload | None = None
    repeated: int = 0
    lengths: Sequence[int] = ()

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
    fit, lengths = in_first_process(lambda: _fitting(studies, data, model, training, data_sha256))
    if len(fit) < len(studies):
        studies = Studies(studies.table.take(fit))
    repeated = check_rows(len(studies), training)
    parts = [part for part in (data, rollouts, *others, model, training) if part is not None]
    films = common_form([Path(data.data_dir) / name for name in data.datasets])
    check_form(model.model_name_or_path, films, "the data")
    settings = stage_settings(model.model_name_or_path, data_sha256, *parts) | {"studies_trained_on": len(studies)}
    if films:
        settings["films"] = films.recorded()
    check_report_to(training)
    upload = open_upload(training, studies.sources, model.model_name_or_path, stage.hub_allow_datasets)
    opened = Stage(Path(training.output_dir), studies, settings, upload, repeated, lengths)
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
) -> tuple[list[int], list[int]]:
    """Row numbers of the studies whose prompt and report fit, and their tokens; says how long the longest is, and what is left
    out."""
    processor = load_processor(model.model_name_or_path, revision=model.model_revision)
    folder = Path(training.output_dir).parent / "lengths"
    lengths = counted_once(studies, processor, data.longitudinal, data.context, data_sha256, folder)
    rows, line = fitting(studies.table.column("study_id").to_pylist(), lengths, training)
    print(f"{Path(training.output_dir).name}: {line}", flush=True)
    return rows, [sum(lengths[row]) for row in rows]


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


def check_revision(model: ModelConfig) -> None:
    """Raise `RecipeError` for a model_revision of a folder, which has none."""
    if model.model_revision != "main" and Path(model.model_name_or_path).is_dir():
        raise RecipeError(
            f"model_revision: {model.model_revision!r} is a version on the hub, and {model.model_name_or_path} is a folder; "
            "take it out, or set model_name_or_path to the hub's name"
        )
