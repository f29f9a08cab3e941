"""Supervised fine-tuning: TRL's SFTTrainer on prompts and reports, loss on the report alone.

python -m recipes.sft --config recipes/demo/sft.yaml [--learning_rate 1e-3 …]
accelerate launch --config_file … -m recipes.sft --config recipes/unirg_cxr/sft.yaml
"""

from __future__ import annotations

from pathlib import Path

from trl import ModelConfig, SFTConfig, get_peft_config

from recipes.arguments import DataArguments, StageArguments, parse_recipe, set_global_batch
from recipes.data import completion_dataset, load_studies
from recipes.errors import RecipeError, run_command
from recipes.models import check_model_folder, load_processor
from recipes.stage import (
    announce,
    check_report_to,
    data_fingerprint,
    finish_stage,
    is_finished,
    quiet_logs,
    run_training,
    stage_settings,
    start_or_resume,
)
from recipes.trainers import ReportTrainer


def main() -> None:
    data, stage, model, training = parse_recipe((DataArguments, StageArguments, ModelConfig, SFTConfig))
    quiet_logs()
    set_global_batch(stage, training)
    check_report_to(training)
    if not model.model_name_or_path:
        raise RecipeError("model_name_or_path is not set: name the model to start from")
    check_model_folder(model.model_name_or_path)
    studies = load_studies(data.datasets, data.data_dir, data.train_split, data.dataset_weights, training.seed)
    data_sha256 = data_fingerprint(data.datasets, data.data_dir, data.train_split)
    settings = stage_settings(model.model_name_or_path, data_sha256, data, model, training)
    output_dir = Path(training.output_dir)
    if is_finished(output_dir, settings, stage.force):
        return
    checkpoint = start_or_resume(output_dir, settings)
    announce(f"sft: {len(studies):,} studies of {', '.join(data.datasets)}; starting from {model.model_name_or_path}")
    training.model_init_kwargs = {"dtype": model.dtype, "attn_implementation": model.attn_implementation}
    trainer = ReportTrainer(
        model=model.model_name_or_path,
        args=training,
        train_dataset=completion_dataset(studies, data.longitudinal, data.context),
        processing_class=load_processor(model.model_name_or_path),
        peft_config=get_peft_config(model),
    )
    run_training(trainer, "sft", checkpoint)
    finish_stage(trainer, "sft", settings, {"studies": len(studies)})


if __name__ == "__main__":
    run_command(main)
