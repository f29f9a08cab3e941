"""GRPO that handles each study once: one read, one image encoding, one attended prompt for all of its rollouts.

TRL gives the 16 rollouts of a study 16 rows, each with the whole prompt and its films. Here a study is one row,

    prompt without its last token | that token, report 1 | that token, report 2 | …

in which positions restart after the prompt for each report, and a report's tokens attend to the prompt and to their own
report alone. Each token therefore sees exactly the tokens, at the positions, that it sees in a row of its own: same
log-probabilities, same gradients, without the repetition. Reports that are equal, token by token, are one segment.

Films are processed once a generation too: TRL's trainer asks its processor twice for every rollout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid

from foundation.errors import RecipeError
from training.kept_activations import kept_activations
from training.shared_attention import Row, row_of, use_shared_attention

ATTENTION = "sdpa"  # what shared_attention is made of


def check_attention(attn_implementation: str | None, key: str = "share_prompts") -> None:
    """Raise `RecipeError` for an attention implementation that cannot keep apart what `key` puts into one row."""
    if attn_implementation not in (None, ATTENTION):  # transformers takes sdpa where none is named
        raise RecipeError(
            f"attn_implementation: {attn_implementation} cannot keep apart what {key} puts into one row; set "
            f"attn_implementation: {ATTENTION}, or {key}: false"
        )


class Films(list):
    """The patches of each rollout's films, float [patches, width], one tensor a rollout; rollouts of one study share theirs.

    TRL takes it for the tensor of all patches and asks `ndim`, by which it tells models with tiles from others.
    """

    ndim = 2


@dataclass(frozen=True)
class Studies:
    """Studies as rows, each with its rollouts: n rows of L tokens, for r rollouts of at most C tokens.

    Attributes:
        input_ids, labels: int64 [n, L]; labels are -100 but where a report's token is to be scored.
        position_ids: int64 [3, n, L], Qwen3-VL's temporal, height and width positions.
        place: int64 [r, C], where in the flattened [n, L - 1] log-probabilities each rollout's tokens are.
        scored: bool [r, C], False beyond a rollout's end.
        rows: of each row, which of its tokens see each other.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    place: torch.Tensor
    scored: torch.Tensor
    rows: list[Row]


def pack_studies(
    prompts: Sequence[torch.Tensor],
    positions: Sequence[torch.Tensor],
    reports: Sequence[Sequence[torch.Tensor]],
    width: int,
    padding_id: int,
    device: torch.device | str = "cpu",
) -> Studies:
    """Rows of studies and their rollouts.

    Args:
        prompts: token ids of each study, int64 [p].
        positions: of each prompt's tokens, int64 [3, p].
        reports: of each study, the token ids of its rollouts, int64 [c] each; an empty one is not scored.
        width: C, the columns of the result of `Studies.place`.
    """
    rows, layouts, scored_at = [], [], []
    for prompt, position, completions in zip(prompts, positions, reports, strict=True):
        ids, labels, places = [prompt[:-1]], [torch.full((len(prompt) - 1,), -100)], [position[:, :-1]]
        end, starts = len(prompt) - 1, {}
        for completion in completions:
            key = tuple(completion.tolist())
            if key and key not in starts:
                starts[key] = end + 1
                ids += [prompt[-1:], completion]
                labels += [torch.tensor([-100]), completion]
                places.append(position[:, -1:] + torch.arange(1 + len(key)))
                end += 1 + len(key)
            scored_at.append((len(rows), starts.get(key, 1), len(key)))
        layouts.append(row_of(len(prompt) - 1, [1 + len(key) for key in starts], device))
        rows.append((torch.cat(ids), torch.cat(labels), torch.cat(places, dim=1)))
    length = max(len(ids) for ids, *_ in rows)
    packed = [
        torch.stack([torch.nn.functional.pad(row[part], (0, length - len(row[0])), value=value) for row in rows])
        for part, value in enumerate((padding_id, -100, 0))
    ]
    column = torch.arange(width)
    row, start, tokens = torch.tensor(scored_at).T[:, :, None]
    scored = column < tokens
    # The log-probability of token t is in column t - 1 of its row.
    place = torch.where(scored, row * (length - 1) + start - 1 + column, 0)
    tensors = (packed[0], packed[1], packed[2].transpose(0, 1), place, scored)
    return Studies(*(tensor.to(device) for tensor in tensors), layouts)


def groups_of(films: Sequence[torch.Tensor]) -> list[range]:
    """Neighbouring rollouts that share their films: the rollouts of each study."""
    ends = [row for row in range(1, len(films) + 1) if row == len(films) or films[row] is not films[row - 1]]
    return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]


@dataclass(frozen=True)
class _ProcessedStudies:
    """What TRL's processor made of each study of a generation, once.

    Attributes:
        films: patches of all images, float [patches, width].
        grids: of each image, int64 [images, 3].
        kinds: of each prompt's tokens: 0 text, 1 image.
        images: of each study.
    """

    films: torch.Tensor
    grids: torch.Tensor
    kinds: Sequence[Sequence[int]]
    images: Sequence[int]

    def of_rollouts(self, rollouts: int) -> dict[str, Any]:
        """What the processor would give for `rollouts` rows of each study; patches are shared, not repeated."""
        grids = self.grids.split(list(self.images))
        films = self.films.split([int(grid.prod(-1).sum()) for grid in grids])
        width = max(map(len, self.kinds))
        kinds = torch.tensor([[0] * (width - len(study)) + list(study) for study in self.kinds])  # left, as prompts are
        return {
            "pixel_values": Films(_each(films, rollouts)),
            "image_grid_thw": torch.cat(_each(grids, rollouts)),
            "mm_token_type_ids": kinds.repeat_interleave(rollouts, dim=0),
        }


class _Remembering:
    """A processor that has processed the films of this generation already; for all else the processor itself."""

    def __init__(self, processor: Any, processed: Callable[[], dict[str, Any]]) -> None:
        self._processor, self._processed = processor, processed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self._processed()


class SharedPrompts(GRPOTrainer):
    """GRPOTrainer with each study's prompt and films handled once for its rollouts.

    Attributes:
        share_prompts: False for TRL's own way.
        checkpoint_above_tokens: with gradient checkpointing, shorter forward passes do without; None: all have it.
    """

    share_prompts = True
    checkpoint_above_tokens: int | None = None
    _studies: _ProcessedStudies | None = None  # of the generation in work

    # ---- films and prompts: read and processed once a generation ----------------------------------------------------

    def _tokenize_prompts(self, prompts: list) -> tuple[list, list, Any]:
        if not self._sharing:
            return super()._tokenize_prompts(prompts)
        rollouts = self.num_generations
        prompt_ids, images, fields = super()._tokenize_prompts(prompts[::rollouts])
        self._studies = _ProcessedStudies(
            self._prepare_input(torch.as_tensor(fields["pixel_values"])),
            self._prepare_input(torch.as_tensor(fields["image_grid_thw"])),
            fields["mm_token_type_ids"],
            [len(films) for films in images],
        )
        return _each(prompt_ids, rollouts), _each(images, rollouts), fields

    def _generate_single_turn(
        self, prompt_ids: list, images: list, multimodal_fields: dict[str, Any], num_generations: int, *args: Any
    ) -> tuple[list, Any]:
        if not self._sharing or self.use_vllm:
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations, *args)
        self.generation_config.num_return_sequences = num_generations
        try:
            first = slice(None, None, num_generations)
            return super()._generate_single_turn(
                prompt_ids[first], images[first], multimodal_fields, num_generations, *args
            )
        finally:
            self.generation_config.num_return_sequences = 1

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self._sharing:
            return super()._generate_and_score_completions(inputs)
        processor = self.processing_class
        self.processing_class = _Remembering(processor, lambda: self._studies.of_rollouts(self.num_generations))
        try:
            return super()._generate_and_score_completions(inputs)
        finally:
            self.processing_class = processor
            self._studies = None

    # ---- updates: whole groups -----------------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """As TRL's, but studies are shuffled, not rollouts: an update has whole groups, and a micro-batch as few studies
        as it can. Within an update studies go by length, so that rows of one micro-batch need little padding."""
        if not self.model.training:
            return super()._prepare_inputs(generation_batch)
        steps = self.args.steps_per_generation
        if self._step % (steps * self.num_iterations) == 0 or self._buffered_inputs is None:
            batch = self._generate_and_score_completions(generation_batch)
            order = self._order_of_rollouts(batch["completion_mask"].sum(1).tolist())
            by_rollout = split_films(batch)
            self._buffered_inputs = [join_films(take(by_rollout, rows)) for rows in order.chunk(steps)]
        return self._buffered_inputs[self._step % steps]

    def _order_of_rollouts(self, lengths: Sequence[int]) -> torch.Tensor:
        """Row numbers: studies in random order, then by length within each update that has whole groups."""
        rollouts = self.num_generations
        tokens = torch.tensor(lengths).view(-1, rollouts).sum(1)
        studies = torch.randperm(len(tokens))
        updates = self.args.steps_per_generation // self.args.gradient_accumulation_steps
        if updates and len(studies) % updates == 0:
            studies = torch.cat([part[tokens[part].argsort(stable=True)] for part in studies.chunk(updates)])
        return (studies[:, None] * rollouts + torch.arange(rollouts)).flatten()

    @property
    def _sharing(self) -> bool:
        return self.share_prompts and self.model.training

    # ---- log-probabilities: each prompt attended once ----------------------------------------------------------------

    def _get_per_token_logps_and_entropies(
        self,
        model: torch.nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        pixel_values: Any = None,
        image_grid_thw: torch.Tensor | None = None,
        num_images: list[int] | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        **others: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        if not isinstance(pixel_values, Films):
            return super()._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size,
                compute_entropy,
                compute_aux_loss,
                pixel_values=pixel_values,
                image_grid_thw=image_grid_thw,
                num_images=num_images,
                mm_token_type_ids=mm_token_type_ids,
                **others,
            )
        logps, entropies = [], []
        grids = image_grid_thw.split(num_images)
        of_rows = [tensor.cpu() for tensor in (input_ids, attention_mask, mm_token_type_ids)]
        for rows in _chunks(len(input_ids), batch_size):
            films = pixel_values[rows]
            studies = [range(rows.start + group.start, rows.start + group.stop) for group in groups_of(films)]
            packed = self._pack(*of_rows, logits_to_keep, studies, grids)
            with self.accelerator.autocast():
                outputs = self._forward(
                    model, packed, [pixel_values[s.start] for s in studies], [grids[s.start] for s in studies]
                )
            logps.append(torch.where(packed.scored, outputs.log_probs.flatten()[packed.place], 0.0))
            if compute_entropy:
                entropies.append(torch.where(packed.scored, outputs.entropy.flatten()[packed.place], 0.0))
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None

    def _pack(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        kinds: torch.Tensor,
        width: int,
        studies: Sequence[range],
        grids: Sequence[torch.Tensor],
    ) -> Studies:
        rope_index = self._qwen(self.model).model.get_rope_index
        seen = attention_mask.bool()
        prompts, positions, reports = [], [], []
        for study in studies:
            first = study.start
            shown = seen[first, :-width]
            prompts.append(input_ids[first, :-width][shown])
            position, _ = rope_index(
                prompts[-1][None], kinds[first, :-width][shown][None], image_grid_thw=grids[first].cpu()
            )
            positions.append(position[:, 0])
            reports.append([input_ids[row, -width:][seen[row, -width:]] for row in study])
        device = self.accelerator.device
        return pack_studies(prompts, positions, reports, width, self._tokenizer.pad_token_id, device)

    def _qwen(self, model: torch.nn.Module) -> PreTrainedModel:
        """The Qwen3-VL within what wraps it: processes, shards, an adapter."""
        unwrapped = self.accelerator.unwrap_model(model)
        return unwrapped.get_base_model() if hasattr(unwrapped, "get_base_model") else unwrapped

    def _forward(
        self, model: torch.nn.Module, packed: Studies, films: Sequence[torch.Tensor], grids: Sequence[torch.Tensor]
    ) -> Any:
        use_shared_attention(self._qwen(model))
        image = packed.input_ids == self.processing_class.image_token_id
        with kept_activations(model, packed.input_ids.numel(), self.checkpoint_above_tokens):
            return model(
                input_ids=packed.input_ids,
                shared_rows=packed.rows,
                position_ids=packed.position_ids,
                pixel_values=torch.cat(list(films)),
                image_grid_thw=torch.cat(list(grids)),
                mm_token_type_ids=image.long(),
                labels=packed.labels,
                fused_lm_head=True,
            )


def split_films(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch with a list of one entry a rollout for films and their grids."""
    if not isinstance(batch.get("pixel_values"), Films):
        return split_pixel_values_by_grid(batch)
    return {**batch, "image_grid_thw": list(batch["image_grid_thw"].split(batch["num_images"]))}


def join_films(batch: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `split_films`; shared films stay shared."""
    if not isinstance(batch.get("pixel_values"), Films):
        return unsplit_pixel_values_by_grid(batch)
    return {**batch, "image_grid_thw": torch.cat(batch["image_grid_thw"])}


def take(batch: dict[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    """These rollouts of a batch; what is no list and no tensor of rollouts stays as it is."""

    def rows_of(value: Any) -> Any:
        if isinstance(value, list):
            return type(value)(value[row] for row in rows.tolist())
        return value[rows.to(value.device)] if isinstance(value, torch.Tensor) and value.ndim else value

    return {name: rows_of(value) for name, value in batch.items()}


def _each(values: Sequence[Any], times: int) -> list[Any]:
    return [value for value in values for _ in range(times)]


def _chunks(rows: int, size: int | None) -> Iterator[slice]:
    for start in range(0, rows, size or rows):
        yield slice(start, min(start + (size or rows), rows))
