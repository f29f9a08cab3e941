"""Checkpoints rated while training: greedy reports of the validation studies by the policy that is in memory anyway.

At each save all processes write their share of the reports, with vLLM where it makes the rollouts; the first scores them by
RadCliQ-v1, logs the mean (paper, Figure 2c), and removes what is neither the newest checkpoint nor one of the best. Reports
lie where `make select` reads them (`<stage>/selection/<checkpoint>/<data set>`): it confirms the choice and makes none again.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOConfig
from trl.models.utils import unwrap_model_for_generation

from foundation.errors import RecipeError, read_json
from foundation.files import write_json
from foundation.locks import hold_folder
from model.checkpoint_files import saved_checkpoints
from model.engines import GenerationSettings, Writer, open_images, prompt_text, writer_of
from model.fingerprint import model_fingerprint
from model.processor import end_tokens
from rewards.metric import Metric
from settings.arguments import DataArguments, StageArguments
from training.checkpoints import RecordCheckpoints
from training.processes import in_first_process
from training.progress import announce
from training.trainers import RolloutTrainer

KEY = "validation/radcliq_v1"  # in the log: the mean, lower is better; with _low and _high of its 95% interval


@dataclass(frozen=True)
class Greedy:
    """Which validation studies the policy writes greedy reports of, and how.

    Attributes:
        data: prepared folders.
        batch_size: studies at once where transformers generates.
    """

    data: tuple[Path, ...]
    split: str
    settings: GenerationSettings
    batch_size: int

    @classmethod
    def of(cls, data: DataArguments, stage: StageArguments, training: GRPOConfig) -> Greedy:
        """As a stage's settings say."""
        settings = GenerationSettings(
            sections=stage.validation_sections,
            longitudinal=data.longitudinal,
            context=data.context,
            max_new_tokens=training.max_completion_length,
            engine="vllm" if training.use_vllm else "transformers",
        )
        folders = tuple(Path(data.data_dir) / name for name in stage.validation_datasets or data.datasets)
        return cls(folders, stage.validation_split, settings, stage.validation_batch_size)


@dataclass(frozen=True)
class Validation(Greedy):
    """On what checkpoints are rated, and how many are kept.

    Attributes:
        max_studies: only so many studies of each folder.
        keep_best: checkpoints that are kept beside the newest.
    """

    max_studies: int | None
    keep_best: int

    @classmethod
    def of(cls, data: DataArguments, stage: StageArguments, training: GRPOConfig) -> Validation | None:
        """As a stage's settings say; None where they keep all checkpoints.

        Raises:
            RecipeError: settings that remove checkpoints by another rule.
        """
        if stage.keep_best is None:
            return None
        if training.save_total_limit:
            raise RecipeError("keep_best and save_total_limit both remove checkpoints; set save_total_limit to null")
        greedy = Greedy.of(data, stage, training)
        return cls(**vars(greedy), max_studies=stage.validation_studies, keep_best=stage.keep_best)


class Rating(Protocol):
    """What rates the reports (evaluation/checkpoint_rating.py)."""

    metric: Metric

    def studies(self, data: Path) -> list[dict[str, Any]]:
        """The validation studies of a prepared folder."""

    def rate(
        self, checkpoint: Path, out: Path, made: Mapping[Path, list[dict[str, Any]]], seconds: float
    ) -> dict[str, Any]:
        """Keep the reports of `checkpoint` in `out` (prepared folder → its lines), and score them."""


class RateCheckpoints(TrainerCallback):
    """Rates each checkpoint once it is saved. To be added before the run starts, in all processes.

    A run that was killed or told to stop before its newest checkpoint was rated does it when it resumes from there.
    """

    def __init__(self, trainer: RolloutTrainer, validation: Validation, rating: Rating) -> None:
        self.trainer, self.validation, self.rating = trainer, validation, rating
        self.folder = Path(trainer.args.output_dir)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        in_first_process(lambda: hold_folder(self.folder / "selection"))
        # trainer_state.json was saved before its own checkpoint was rated.
        logged = {entry["step"] for entry in state.log_history if KEY in entry}
        for record in in_first_process(self._records):
            if int(record["step"]) not in logged and record["step"] <= state.global_step:
                state.log_history.append({**_logged(record), "step": record["step"]})
        if state.global_step and (self.folder / f"checkpoint-{state.global_step}").is_dir():
            self._rate(state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_training_stop and state.global_step < state.max_steps:
            return  # told to stop, soon perhaps by force: rated when the run resumes
        self._rate(state.global_step)

    def _records(self) -> list[dict[str, Any]]:
        path = self.folder / "selection" / "validation.json"
        return read_json(path)["checkpoints"] if path.is_file() else []

    def _rate(self, step: int) -> None:
        if step in {record["step"] for record in in_first_process(self._records)}:
            return
        name, started = f"checkpoint-{step}", time.monotonic()
        made = {data: self._write(data) for data in self.validation.data}
        record = in_first_process(lambda: self._record(name, step, made, time.monotonic() - started))
        Trainer.log(self.trainer, _logged(record))  # TRL's own would close the running means of the rollouts
        mean = record["radcliq_v1"]["mean"]
        announce(
            f"{self.folder.name} step {step} · validation {self.rating.metric.name} {mean:.4f} (lower is better) of "
            f"{record['studies']:,} greedy reports · {record['seconds']:.0f} s"
        )

    def _write(self, data: Path) -> list[dict[str, Any]]:
        return write_in_shares(self.trainer, self.validation, self.rating.studies(data))

    def _record(
        self, name: str, step: int, made: Mapping[Path, list[dict[str, Any]]], seconds: float
    ) -> dict[str, Any]:
        checkpoint = self.folder / name
        rated = self.rating.rate(checkpoint, self.folder / "selection" / name, made, seconds)
        record = {"checkpoint": name, "step": step, "model_sha256": model_fingerprint(str(checkpoint)), **rated}
        record["seconds"] = round(seconds, 1)
        records = [*self._records(), record]
        metric = self.rating.metric
        write_json(
            self.folder / "selection" / "validation.json",
            {"metric": metric.name, "fingerprint": metric.fingerprint, "checkpoints": records},
        )
        self._prune(records)
        return record

    def _prune(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Remove rated checkpoints that are neither the newest nor among the best; what was never rated stays."""
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, RecordCheckpoints):
                callback.wait()  # it reads and trims older checkpoints meanwhile
        order = sorted(records, key=lambda record: record["radcliq_v1"]["mean"])
        kept = {record["checkpoint"] for record in order[: self.validation.keep_best]}
        rated = {record["checkpoint"] for record in records}
        for checkpoint in saved_checkpoints(self.folder)[:-1]:
            if checkpoint.name in rated - kept:
                removed = checkpoint.with_name(f".removed-{checkpoint.name}")
                os.replace(checkpoint, removed)  # at once: it is never seen half removed
        for removed in self.folder.glob(".removed-checkpoint-*"):
            shutil.rmtree(removed)


def _logged(record: Mapping[str, Any]) -> dict[str, float]:
    found = {KEY: record["radcliq_v1"]["mean"], "validation/inverse_radcliq_v1": record["inverse_radcliq_v1"]["mean"]}
    if record["radcliq_v1"]["low"] is not None:
        found |= {f"{KEY}_{end}": record["radcliq_v1"][end] for end in ("low", "high")}
    return found


def write_in_shares(trainer: RolloutTrainer, greedy: Greedy, studies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The policy's reports of all `studies`, in the first process; each process writes its share, so all must call this."""
    accelerator = trainer.accelerator
    each = math.ceil(len(studies) / accelerator.num_processes)
    mine = list(studies[accelerator.process_index :: accelerator.num_processes])
    mine += studies[:1] * (each - len(mine))  # all must generate as often
    size = each if trainer.use_vllm else greedy.batch_size
    lines = []
    with policy_writer(trainer, greedy.settings) as write:
        for start in range(0, each, size):
            batch = mine[start : start + size]
            for study, (report, cut) in zip(batch, write(batch), strict=True):
                lines.append({"study_id": study["study_id"], "model_prediction": report, "truncated": cut})
    return gather_object(lines)


@contextlib.contextmanager
def policy_writer(trainer: RolloutTrainer, settings: GenerationSettings) -> Iterator[Writer]:
    """Greedy reports by the policy as it is now. All processes must write equally many batches, of equally many studies."""
    if trainer.use_vllm:
        yield lambda studies: _write_with_vllm(trainer, settings, studies)
        return
    training = trainer.model.training
    with (
        unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gather_deepspeed3_params=trainer.args.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
        ) as model,
        trainer._dist.summon_full_params(trainer.model_wrapped, recurse=False),
    ):
        model.eval()
        try:
            yield writer_of(model, trainer.processing_class, settings, trainer.accelerator.device)
        finally:
            model.train(training)


def _write_with_vllm(
    trainer: RolloutTrainer, settings: GenerationSettings, studies: Sequence[Mapping[str, Any]]
) -> list[tuple[str, bool]]:
    generation, processor = trainer.vllm_generation, trainer.processing_class
    if trainer.state.global_step != trainer._last_loaded_step:
        generation.sync_weights()
        trainer._last_loaded_step = trainer.state.global_step
    films = [open_images(study, settings) for study in studies]
    texts = [prompt_text(processor, study, settings) for study in studies]
    prompts = [processor(text=[text], images=shown)["input_ids"][0] for text, shown in zip(texts, films, strict=True)]
    greedy = {"temperature": 0.0, "repetition_penalty": 1.0, "max_completion_length": settings.max_new_tokens}
    sampling = {name: getattr(generation, name) for name in greedy}
    vars(generation).update(greedy)
    try:
        _, completions, *_ = generation.generate(
            prompts=[list(ids) for ids in prompts], images=films, num_generations=1
        )
    finally:
        vars(generation).update(sampling)
    ends = end_tokens(processor)
    reports = processor.tokenizer.batch_decode(completions, skip_special_tokens=True)
    return [(report.strip(), ids[-1] not in ends) for report, ids in zip(reports, completions, strict=True)]
