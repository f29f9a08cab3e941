"""Supervised fine-tuning: TRL's SFTTrainer on prompts and reports, loss on the report alone.

python -m recipes.sft --config recipes/demo/sft.yaml [--learning_rate 1e-3 …]
accelerate launch --config_file … -m recipes.sft --config recipes/unirg_cxr/sft.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trl import ModelConfig, SFTConfig, get_peft_config, get_quantization_config

from foundation.errors import run_command
from model.adapter import merged_checkpoint
from model.loading import generate_neutrally, model_options
from model.processor import load_processor
from settings.arguments import DataArguments, StageArguments
from settings.parser import parse_recipe
from training.checkpoints import start_or_resume
from training.data import completion_dataset
from training.processes import leave_together
from training.progress import announce
from training.result import finish_stage
from training.run import run_training
from training.shared_prompts import check_attention
from training.small_steps import keep_small_steps, weights_dtype
from training.stage import open_stage
from training.trainers import ReportTrainer


def main() -> None:
    data, stage, model, training = parse_recipe((DataArguments, StageArguments, ModelConfig, SFTConfig))
    if stage.pack_studies:
        check_attention(model.attn_implementation, "pack_studies")
    opened = open_stage(data, stage, model, training)
    if opened is None:
        leave_together()
        return
    studies = opened.studies
    checkpoint = start_or_resume(opened.output_dir, opened.settings)
    announce(f"sft: {len(studies):,} studies of {', '.join(data.datasets)}; starting from {model.model_name_or_path}")
    trainer = build_trainer(data, model, training, studies, stage.pack_studies, opened.lengths)
    trainer.checkpoint_above_tokens = stage.checkpoint_above_tokens
    run_training(trainer, "sft", checkpoint, stage.keep_optimizer_states)
    finish_stage(trainer, "sft", opened.settings, {"studies": len(studies), "studies_twice_an_epoch": opened.repeated})
    if opened.upload:
        opened.upload.push()


def build_trainer(
    data: DataArguments,
    model: ModelConfig,
    training: SFTConfig,
    studies: Sequence[dict[str, Any]],
    pack_studies: bool = False,
    lengths: Sequence[int] = (),
) -> ReportTrainer:
    """The trainer of the SFT stage.

    Args:
        lengths: tokens of each study, by which `pack_studies` gives all processes passes of nearly the same length.
    """
    start = merged_checkpoint(model.model_name_or_path)
    training.model_init_kwargs = model_options(model, training) | {"dtype": weights_dtype(start, model, training)}
    training.remove_unused_columns = False  # rows are made of columns that the trainer does not know
    processor = load_processor(start, revision=model.model_revision)
    trainer = ReportTrainer(
        model=start,
        args=training,
        train_dataset=completion_dataset(studies, data.longitudinal, data.context),
        processing_class=processor,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    if pack_studies:
        trainer.pack_studies(lengths)
    if kept := keep_small_steps(trainer, start, model):
        announce(f"sft: {kept}")
    generate_neutrally(trainer.model, processor)  # what is saved decodes greedily, as it is evaluated
    return trainer


if __name__ == "__main__":
    run_command(main)
