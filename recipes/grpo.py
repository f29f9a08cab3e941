"""Reinforcement learning: TRL's GRPOTrainer with the composite reward (paper, Optimization: steps 1 and 2 are two YAMLs).

    python -m recipes.grpo --config recipes/demo/rl_step1.yaml [--learning_rate 2e-4 …]
    accelerate launch --config_file … -m recipes.grpo --config recipes/unirg_cxr/rl_step1.yaml
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from trl import GRPOConfig, GRPOTrainer, ModelConfig, get_peft_config

from recipes.arguments import DataArguments, RewardArguments, StageArguments, parse_recipe
from recipes.data import load_studies, rollout_dataset
from recipes.errors import RecipeError, run_command
from recipes.models import check_model_folder, load_processor
from recipes.stage import add_progress, data_fingerprint, finish_stage, is_finished, last_checkpoint, quiet_logs, stage_settings
from rewards.chexprompt.judge import Judge, JudgeSettings
from rewards.composite import CompositeReward, JudgeFailureRateError
from rewards.grpo_reward import GrpoReward
from rewards.offline.judge_server import offline_judge_server
from rewards.registry import load_metrics


def main() -> None:
    types = (DataArguments, RewardArguments, JudgeSettings, StageArguments, ModelConfig, GRPOConfig)
    data, reward, judge_settings, stage, model, training = parse_recipe(types)
    quiet_logs()
    if not model.model_name_or_path:
        raise RecipeError("model_name_or_path is not set: name the model to start from")
    check_model_folder(model.model_name_or_path)
    studies = load_studies(data.datasets, data.data_dir, data.train_split, data.dataset_weights, training.seed)
    data_sha256 = data_fingerprint(data.datasets, data.data_dir, data.train_split)
    settings = stage_settings(model.model_name_or_path, data_sha256, data, reward, judge_settings, model, training)
    output_dir = Path(training.output_dir)
    if is_finished(output_dir, settings, stage.force):
        return
    with contextlib.ExitStack() as resources:
        composite = build_composite(reward, judge_settings, resources)
        print(f"{output_dir.name}: {len(studies):,} studies of {', '.join(data.datasets)}; from {model.model_name_or_path}")
        print(f"{output_dir.name}: reward = {composite.describe()}")
        training.model_init_kwargs = {"dtype": model.dtype, "attn_implementation": model.attn_implementation}
        trainer = GRPOTrainer(
            model=model.model_name_or_path,
            reward_funcs=GrpoReward(composite, judge_settings.judge_max_failure_rate),
            args=training,
            train_dataset=rollout_dataset(studies, data.longitudinal, data.context),
            processing_class=load_processor(model.model_name_or_path),
            peft_config=get_peft_config(model),
        )
        add_progress(trainer, output_dir.name)
        try:
            trainer.train(resume_from_checkpoint=last_checkpoint(output_dir))
        except JudgeFailureRateError as error:
            trainer._save_checkpoint(trainer.model, trial=None)
            raise RecipeError(f"{error}; training stopped at step {trainer.state.global_step}, checkpoint saved") from error
        finish_stage(trainer, output_dir.name, settings, {"studies": len(studies), "reward": composite.describe()})


def build_composite(
    reward: RewardArguments, judge_settings: JudgeSettings, resources: contextlib.ExitStack
) -> CompositeReward:
    """The composite reward of a recipe; a judge server that it needs lives as long as `resources`."""
    weights = reward.metric_weights
    metrics = load_metrics(list(weights), reward.reward_backend, Path(reward.weights_dir))
    judge = None
    if reward.weight_chexprompt:
        if judge_settings.judge_base_url == "offline":
            judge_settings.judge_base_url = resources.enter_context(offline_judge_server())
        judge = Judge.from_settings(judge_settings)
    return CompositeReward(weights, metrics, judge=judge, judge_weight=reward.weight_chexprompt)


if __name__ == "__main__":
    run_command(main)
