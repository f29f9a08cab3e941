"""The batch of an optimiser step, divided over processes, rows and rollouts."""

from __future__ import annotations

from trl import GRPOConfig, SFTConfig

from foundation.errors import RecipeError
from settings.arguments import RolloutArguments, StageArguments


def set_global_batch(
    stage: StageArguments, training: SFTConfig | GRPOConfig, rollouts: RolloutArguments | None = None
) -> None:
    """Set gradient accumulation (and GRPO's generation batch) so that one optimiser step sees `global_batch_size`.

    In SFT the batch counts studies. In GRPO, TRL counts completions: 256 prompts of 16 rollouts are 4,096 completions.

    Raises:
        RecipeError: the batch does not divide by what the processes hold at once, or a process does not get whole groups
            of rollouts.
    """
    if stage.global_batch_size is not None:
        _divide_batch(stage.global_batch_size, training, rollouts)
    if isinstance(training, GRPOConfig):
        of_one = training.per_device_train_batch_size * training.steps_per_generation
        if of_one % training.num_generations:
            raise RecipeError(
                f"a process generates {of_one} completions ({training.per_device_train_batch_size} rows × "
                f"{training.steps_per_generation} steps_per_generation), which are no whole groups of "
                f"{training.num_generations} rollouts; change per_device_train_batch_size, global_batch_size or the number "
                "of GPUs"
            )


def _divide_batch(wanted: int, training: SFTConfig | GRPOConfig, rollouts: RolloutArguments | None) -> None:
    batch = wanted
    if isinstance(training, GRPOConfig) and rollouts and rollouts.batch_counts == "prompts":
        batch *= training.num_generations
    at_once = training.per_device_train_batch_size * training.world_size
    if batch % at_once:
        raise RecipeError(
            f"global_batch_size {wanted} ({batch} rows) does not divide by "
            f"{training.per_device_train_batch_size} rows × {training.world_size} processes; "
            f"change per_device_train_batch_size or the number of GPUs"
        )
    training.gradient_accumulation_steps = batch // at_once
    if isinstance(training, GRPOConfig) and rollouts:
        training.steps_per_generation = training.gradient_accumulation_steps * rollouts.updates_per_generation
        training.generation_batch_size = at_once * training.steps_per_generation
