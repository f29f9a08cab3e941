"""TRL's trainers, with what a resumed run, large generations and vLLM with images need on top.

Both: the order of the studies depends on seed and epoch alone. TRL and transformers draw it from a generator that a
resumed run has not advanced, so that a run resumed in its second epoch would see some studies twice and others never.
And a checkpoint is marked whole once every process has written its part.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from safetensors import SafetensorError
from torch.utils.data import RandomSampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import GRPOConfig, SFTTrainer
from trl.trainer.utils import RepeatSampler

from foundation.errors import RecipeError
from model.adapter import note_base
from model.float32_head import float32_head
from training.balanced_batches import BalancedBatches
from training.finite import WatchedSteps
from training.gradients import keep_adapters_in_float32, let_vision_adapters_learn
from training.kept_activations import kept_activations
from training.kept_generation import FILMS, NAME, ROWS, keep_generation, kept_generation
from training.packed_studies import LENGTHS, PackedStudies
from training.shared_attention import Blocks, use_shared_attention
from training.shared_prompts import Films, SharedPrompts, join_films, split_films, take
from training.small_steps import mark_dtype
from training.step_times import READ, TimedParts
from training.vllm_adapter_sync import send_merged_copies
from training.vllm_guards import mend_vllm
from training.vllm_native_adapters import room_for_adapters, send_adapters


class _SeedEachEpoch(TrainerCallback):
    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.generator.manual_seed(args.seed + int(state.epoch or 0))


class WholeEpochs(RepeatSampler):
    """TRL's sampler, with every study in every epoch: the last generation is filled from another order of the others.

    TRL leaves out the studies that do not fill it, up to 511 at the paper's size.
    """

    def __iter__(self) -> Iterator[int]:
        order = self._order()
        if missing := -len(order) % self.batch_size:
            last = set(order[len(order) - len(order) % self.batch_size :])
            order += [row for row in self._order() if row not in last][:missing]
        for start in range(0, len(order), self.batch_size):
            for _ in range(self.repeat_count):
                for row in order[start : start + self.batch_size]:
                    yield from [row] * self.mini_repeat_count

    def _order(self) -> list[int]:
        rows = self.num_samples
        return torch.randperm(rows, generator=self.generator).tolist() if self.shuffle else list(range(rows))

    def __len__(self) -> int:
        chunks = -(-self.num_samples // self.batch_size)
        return chunks * self.batch_size * self.mini_repeat_count * self.repeat_count


class _Resumable(WatchedSteps):
    """Mixin: a sampler with a generator of its own, and checkpoints whose last file is `trainer_state.json`.

    Attributes:
        load_as: the dtype that saved weights are to be loaded in; None: that which they have.
    """

    load_as: str | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        let_vision_adapters_learn(self.model, self.args)
        keep_adapters_in_float32(self.model)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        sampler = super()._get_train_sampler(*args, **kwargs)
        if isinstance(sampler, RepeatSampler):
            sampler.__class__ = WholeEpochs
        if isinstance(sampler, (RepeatSampler, LengthGroupedSampler)):
            self._seed_each_epoch(sampler)
        return sampler

    def _seed_each_epoch(self, sampler: Any) -> None:
        sampler.generator = torch.Generator()
        self.add_callback(_SeedEachEpoch(sampler.generator))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if is_peft_model(self.model) and self.args.should_save:
            base = self.model.get_base_model()
            note_base(Path(output_dir or self.args.output_dir), base.config._name_or_path, base.dtype)
        if self.load_as and self.args.should_save:
            mark_dtype(Path(output_dir or self.args.output_dir), self.load_as)

    def _save_rng_state(self, output_dir: str) -> None:
        # The first process writes trainer_state.json next, by which a checkpoint counts as whole: all must be done by then.
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None of TRL's, which knows neither base model nor data; `finish_stage` writes one into `final/`."""

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        # PyTorch and safetensors tell of a full disk in words of their own: an OSError from one, RuntimeError from the other.
        try:
            super()._save_checkpoint(*args, **kwargs)
        except (OSError, RuntimeError, SafetensorError) as error:
            if not isinstance(error, OSError) and not _of_the_disk(error):
                raise
            raise RecipeError(
                f"{self.args.output_dir}/checkpoint-{self.state.global_step} could not be written "
                f"({str(error).splitlines()[0]}); make room on that disk, or mend it, and run the same command again"
            ) from error

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # transformers would train one step more from a checkpoint of the last step, as a kill before result.json leaves it.
        last = self.state.max_steps
        if self.state.global_step > last:
            raise RecipeError(
                f"{self.args.output_dir} holds checkpoint-{self.state.global_step}, past the last step that is asked for "
                f"({last}); raise max_steps or num_train_epochs, or FORCE=1 starts it again"
            )
        if self.state.global_step == last:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)


def _of_the_disk(error: Exception) -> bool:
    """Whether an error of PyTorch's or of safetensors' writer is of the file that it writes."""
    text = str(error)
    return any(
        word in text for word in ("inline_container", "PytorchStreamWriter", "I/O error", "No space left", "os error")
    )


class ReportTrainer(_Resumable, SFTTrainer):
    """SFTTrainer that a kill does not disturb, whose objective is the mean over all report tokens of an optimiser step.

    However the step's batch is divided into forward passes and processes, gradient, loss, entropy and token accuracy are
    those of the whole batch.

    Attributes:
        checkpoint_above_tokens: with gradient checkpointing, shorter forward passes do without; None: all have it.
    """

    checkpoint_above_tokens: int | None = None
    _lengths: Sequence[int] = ()  # tokens of each study, where passes are to be of nearly the same length

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Qwen3-VL declares `accepts_loss_kwargs = False`, for which transformers would average the means of forward passes: a
        # report in a short one would weigh more. TRL computes the loss itself, and divides by the step's tokens if told them.
        self.model_accepts_loss_kwargs = True
        self._sums: dict[str, torch.Tensor] = {}  # of tokens, entropy and hits since the last log, by mode

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        sampler = super()._get_train_sampler(*args, **kwargs)
        processes = self.accelerator.num_processes
        if not self._lengths or processes == 1 or not isinstance(sampler, RandomSampler):
            return sampler
        self._seed_each_epoch(sampler)
        passes = processes * self.args.gradient_accumulation_steps
        return BalancedBatches(sampler, self._lengths, self._train_batch_size, passes)

    def pack_studies(self, lengths: Sequence[int] = ()) -> None:
        """From now on, one row for all studies of a forward pass; of nearly the same length in all processes' passes where
        `lengths`, tokens of each study, are given."""
        self._lengths = lengths
        model = self.accelerator.unwrap_model(self.model)
        model = model.get_base_model() if is_peft_model(model) else model
        use_shared_attention(model)
        self.data_collator = PackedStudies(self.data_collator, model.model.get_rope_index)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        if self.model.training and num_items_in_batch is None:
            raise RecipeError(
                "the report tokens of an optimiser step are not counted, so its loss would depend on how the batch is split; "
                "install the transformers and TRL of requirements.txt"
            )

        def measured(**model_inputs: Any) -> Any:
            if LENGTHS in model_inputs:
                del model_inputs["attention_mask"]  # all ones, of which TRL counts the tokens
                model_inputs["shared_rows"] = [Blocks(model_inputs.pop(LENGTHS).tolist())]
            with kept_activations(model, model_inputs["input_ids"].numel(), self.checkpoint_above_tokens):
                outputs = model(**model_inputs)
            if getattr(outputs, "label_mask", None) is not None:
                self._add_up(outputs)
            return outputs

        return super().compute_loss(measured, inputs, return_outputs, num_items_in_batch)

    def _add_up(self, outputs: Any) -> None:
        parts = (outputs.label_mask, outputs.entropy.detach(), outputs.is_top1)
        sums = torch.stack([part.sum(dtype=torch.float32) for part in parts])
        mode = "train" if self.model.training else "eval"
        self._sums[mode] = self._sums.get(mode, 0) + sums

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # TRL averages the means of forward passes; all processes log, so all come here.
        mode = "train" if self.model.training else "eval"
        if mode in self._sums:
            tokens, entropy, hits = self.accelerator.reduce(self._sums.pop(mode), reduction="sum").tolist()
            means = {"entropy": entropy / max(tokens, 1), "mean_token_accuracy": hits / max(tokens, 1)}
            self._metrics[mode] |= {name: [mean] for name, mean in means.items()}
        super().log(logs, start_time)


class _TokenMeans:
    """Mixin: what GRPOTrainer logs of tokens (KL, entropy, share clipped) is a mean over all tokens since the last log.

    TRL averages the means of forward passes, so that a token of a pass with short reports would count for more.
    """

    _tokens: list[torch.Tensor] | None = None  # of each forward pass since the last log, of this process

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self.model.training:
            self._tokens = [*(self._tokens or []), inputs["completion_mask"].sum().float()]
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training and self._tokens:
            weights = self.accelerator.reduce(torch.stack(self._tokens), reduction="sum").tolist()
            self._tokens = None
            by_token = self.importance_sampling_level == "token"
            for name, values in self._metrics["train"].items():
                of_tokens = name in ("kl", "entropy") or (
                    by_token and name.startswith("clip_ratio/") and "mean" in name
                )
                if of_tokens and len(values) == len(weights) and sum(weights):
                    mean = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
                    self._metrics["train"][name] = [mean]
        super().log(logs, start_time)


class RolloutTrainer(_Resumable, _TokenMeans, TimedParts, SharedPrompts):
    """GRPOTrainer that a kill does not disturb, not even inside a generation, that opens each image once a generation, and
    whose colocated vLLM sees the images that the policy sees.

    Attributes:
        generation_checks: called with the trainer once a generation is scored, before an update uses it.
    """

    _resumed_from: str | None = None  # the checkpoint that this run resumes from
    _buffered_inputs: list[dict[str, Any]] | None = None  # micro-batches of the generation in use

    def __init__(self, *others: Any, args: GRPOConfig, native_adapters: bool = False, **kwargs: Any) -> None:
        in_float32, args.cast_lm_head_to_fp32 = args.cast_lm_head_to_fp32, False
        with room_for_adapters(kwargs["peft_config"].r) if native_adapters else contextlib.nullcontext():
            super().__init__(*others, args=args, **kwargs)
        if in_float32:
            float32_head(self.model, self.temperature, ("log_probs", "entropy"))
            if self.ref_model is not None:
                float32_head(self.ref_model, self.temperature, ("log_probs",))
        self.generation_checks: list[Callable[[RolloutTrainer], None]] = []
        if self.use_vllm:
            (send_adapters if native_adapters else send_merged_copies)(self.vllm_generation)
            mend_vllm(self)

    def _get_dataloader(self, dataset: Any, *args: Any, is_training: bool = False, **kwargs: Any) -> Any:
        # TRL's loader hands over all rows of a generation at each of its micro-steps, and reads those of the first alone:
        # of 128 micro-steps it would open 127 times as many images as are seen. So it hands over row numbers, and the rows
        # are read where they are generated from; wherever in a generation a run resumes, they are there.
        if is_training:
            dataset = range(len(dataset))
        return super()._get_dataloader(dataset, *args, is_training=is_training, **kwargs)

    def _generate_and_score_completions(self, inputs: list[Any]) -> dict[str, Any]:
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        with self.times.part(READ):
            rows = self._rows(inputs)
        batch = super()._generate_and_score_completions(rows) | {ROWS: list(inputs)}
        for check in self.generation_checks:
            check(self)
        return batch

    def _rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """These rows of the training set; rollouts of one study share its opened images."""
        rows = {number: self.train_dataset[number] for number in dict.fromkeys(numbers)}
        return [dict(rows[number]) for number in numbers]

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        # TRL counts its micro-steps from 0 after a resume; the place within a generation must be that of the data.
        if self.model.training and self._buffered_inputs is None:
            self._step = self.state.global_step * self.args.gradient_accumulation_steps
            if self._inside_a_generation and self._resumed_from:
                self._buffered_inputs = self._kept_inputs()
        return super()._prepare_inputs(generation_batch)

    # ---- checkpoints inside a generation -----------------------------------------------------------------------------

    @property
    def _inside_a_generation(self) -> bool:
        updates = self.args.steps_per_generation * self.num_iterations // self.args.gradient_accumulation_steps
        return self.state.global_step % max(updates, 1) != 0

    def _generation_file(self, checkpoint: str) -> Path:
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        return Path(checkpoint) / NAME.format(process=process, processes=processes)

    def _save_rng_state(self, output_dir: str) -> None:
        if self._buffered_inputs is not None and self._inside_a_generation:
            keep_generation(self._generation_file(output_dir), self._buffered_inputs)
        super()._save_rng_state(output_dir)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        self._resumed_from = checkpoint

    def _kept_inputs(self) -> list[dict[str, Any]] | None:
        """The micro-batches of the generation in which the checkpoint lies; None where it was saved by other processes."""
        path = self._generation_file(self._resumed_from)
        if not path.is_file():
            if self.accelerator.is_main_process:
                print(
                    f"{path.parent}: its rollouts are of another number of processes; they are made again", flush=True
                )
            return None
        batch = {name: self._prepare_input(value) for name, value in kept_generation(path).items()}
        films = self._films_of(batch[ROWS])
        batch[FILMS] = Films(films) if self.share_prompts else torch.cat(films)
        by_rollout = split_films(batch)
        parts = torch.arange(len(films)).chunk(self.args.steps_per_generation)
        return [join_films(take(by_rollout, rows)) for rows in parts]

    def _films_of(self, rows: Sequence[int]) -> list[torch.Tensor]:
        """The patches of each rollout's films, float [patches, width]; rollouts of one study share theirs."""
        patches = {}
        for row in dict.fromkeys(rows):
            images = self.train_dataset[row]["images"]
            made = self.processing_class.image_processor(images=images, return_tensors="pt")[FILMS]
            patches[row] = self._prepare_input(torch.as_tensor(made))
        return [patches[row] for row in rows]


class UnscoredRows(logging.Filter):
    """Drops TRL's warning for a rollout without reward, which prints the whole row, patient text included.

    The reward itself warns of failed judge calls with their causes, and logs their share.

    Attributes:
        count: warnings dropped.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        if "All reward functions returned None" not in record.getMessage():
            return True
        self.count += 1
        return False


def keep_rows_out_of_logs() -> UnscoredRows:
    """Install `UnscoredRows` on TRL's logger (once) and return it."""
    logger = logging.getLogger("trl.trainer.grpo_trainer")
    for installed in logger.filters:
        if isinstance(installed, UnscoredRows):
            return installed
    installed = UnscoredRows()
    logger.addFilter(installed)
    return installed
