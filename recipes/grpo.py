"""Reinforcement learning: TRL's GRPOTrainer with the composite reward (paper, Optimization: steps 1 and 2 are two YAMLs).

python -m recipes.grpo --config recipes/demo/rl_step1.yaml [--learning_rate 2e-4 …]
accelerate launch --config_file … -m recipes.grpo --config recipes/unirg_cxr/rl_step1.yaml
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trl import GRPOConfig, ModelConfig, get_peft_config, get_quantization_config

from evaluation.checkpoint_rating import CheckpointRating, check_rated
from foundation.errors import run_command
from foundation.governance import JudgeError
from model.adapter import merged_checkpoint
from model.checkpoint_files import saved_checkpoints
from model.loading import generate_neutrally, model_options
from model.processor import end_tokens, load_processor
from rewards.assemble import load_parts, strictest_settings
from rewards.chexprompt.judge import OFFLINE, Judge
from rewards.chexprompt.rubric import load_prompt
from rewards.chexprompt.settings import JudgeSettings
from rewards.composite import CompositeReward
from rewards.engine import EngineSettings
from rewards.grpo_reward import GrpoReward, Observer
from rewards.llm_metrics import LLM_METRICS, LlmMetric, settings_by_metric
from rewards.offline import judge_server
from rewards.radcliq import PARTS, RadCliQ
from settings.arguments import DataArguments, MonitorArguments, RewardArguments, RolloutArguments, StageArguments
from settings.parser import parse_recipe
from training.checkpoints import start_or_resume, trim_checkpoint
from training.data import rollout_dataset
from training.film_guard import FilmGuard
from training.monitors import RolloutMonitors, build_monitors
from training.processes import leave_together
from training.progress import announce
from training.result import finish_stage
from training.run import run_training
from training.shared_prompts import check_attention
from training.small_steps import keep_small_steps, weights_dtype
from training.stage import open_stage
from training.trainers import RolloutTrainer, keep_rows_out_of_logs
from training.validation import Greedy, RateCheckpoints, Validation
from training.vllm_guards import check_server_host, check_vllm, forbid_image_tokens
from training.vllm_native_adapters import check_native_adapters

ARGUMENTS = (
    DataArguments,
    RewardArguments,
    JudgeSettings,
    StageArguments,
    RolloutArguments,
    MonitorArguments,
    ModelConfig,
    GRPOConfig,
)


def main() -> None:
    data, reward, judge_settings, stage, rollouts, watched, model, training = parse_recipe(ARGUMENTS)
    check_vllm(training)
    if rollouts.vllm_native_adapters:
        check_native_adapters(model, training)
    if rollouts.share_prompts:
        check_attention(model.attn_implementation)
    judged = judge_answers(judge_settings) if reward.weight_chexprompt else {}
    judged |= llm_metric_answers(llm_metrics_of(reward, judge_settings))
    validation = Validation.of(data, stage, training)
    if validation is not None:
        check_rated(validation.data, validation.split, validation.settings.sections)
    opened = open_stage(data, stage, model, training, rollouts, reward, judged, watched)
    if opened is None:
        leave_together()
        return
    check_server_host(training, opened.sources, rollouts.vllm_trusted_hosts)
    name, studies = opened.name, opened.studies
    with contextlib.ExitStack() as resources:
        composite = build_composite(reward, judge_settings, opened.sources, resources)
        monitors = build_monitors(watched, reward, composite, opened.output_dir)
        checkpoint = start_or_resume(opened.output_dir, opened.settings)
        announce(f"{name}: {len(studies):,} studies of {', '.join(data.datasets)}; from {model.model_name_or_path}")
        announce(f"{name}: reward = {describe(composite)}")
        unscored = keep_rows_out_of_logs()
        trainer = build_trainer(data, reward, judge_settings, rollouts, model, training, studies, composite, monitors)
        trainer.checkpoint_above_tokens = stage.checkpoint_above_tokens
        rating = []
        if validation is not None:
            parts = {part: composite.metrics[part] for part in PARTS}
            rating = [RateCheckpoints(trainer, validation, rating_of(validation, RadCliQ("v1", parts)))]
        if watched.monitor_min_film_effect is not None:
            rating.append(FilmGuard(trainer, Greedy.of(data, stage, training), monitors))
        run_training(trainer, name, checkpoint, stage.keep_optimizer_states, *rating)
        monitors.raise_if_tripped()
        extra = {
            "studies": len(studies),
            "studies_twice_an_epoch": opened.repeated,
            "reward": describe(composite),
            "seconds_by_part": {part: round(seconds, 2) for part, seconds in trainer.times.total.items()},
            "batches_with_unscored_rollouts": unscored.count,
        }
        finish_stage(trainer, name, opened.settings, extra)
        if validation is not None and trainer.is_world_process_zero():
            for newest in saved_checkpoints(opened.output_dir)[-1:]:
                trim_checkpoint(newest)  # nothing resumes from a finished stage
        if opened.upload:
            opened.upload.push()


def rating_of(validation: Validation, metric: RadCliQ) -> CheckpointRating:
    """Rates by `metric` on the studies, and by the settings, of `validation`."""
    return CheckpointRating(
        validation.split, validation.max_studies, validation.settings, validation.batch_size, metric
    )


def build_trainer(
    data: DataArguments,
    reward: RewardArguments,
    judge_settings: JudgeSettings,
    rollouts: RolloutArguments,
    model: ModelConfig,
    training: GRPOConfig,
    studies: Sequence[dict[str, Any]],
    composite: CompositeReward,
    monitors: RolloutMonitors,
) -> RolloutTrainer:
    """The trainer of a GRPO stage; with `beta` above 0 its reference policy is the model that it starts from."""
    start = merged_checkpoint(model.model_name_or_path)
    processor = load_processor(start, revision=model.model_revision)
    forbid_image_tokens(training, processor)
    ends = end_tokens(processor)
    key = "stop_token_ids" if training.use_vllm else "eos_token_id"
    training.generation_kwargs = {key: ends, **(training.generation_kwargs or {})}
    training.model_init_kwargs = model_options(model, training) | {"dtype": weights_dtype(start, model, training)}
    strictest = strictest_settings(composite) or judge_settings
    trainer = RolloutTrainer(
        model=start,
        reward_funcs=GrpoReward(
            composite,
            strictest.judge_max_failure_rate,
            strictest.judge_failure_window,
            observers=[monitors.observe, *judge_costs(composite)],
            normalize_groups_of=training.num_generations if reward.reward_normalize_parts else None,
            stop_at_once=False,  # the monitors stop all processes together
        ),
        args=training,
        train_dataset=rollout_dataset(studies, data.longitudinal, data.context),
        processing_class=processor,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
        native_adapters=rollouts.vllm_native_adapters,
    )
    trainer.eos_token_ids = ends
    if kept := keep_small_steps(trainer, start, model):
        announce(f"{Path(training.output_dir).name}: {kept}")
    generate_neutrally(trainer.model, processor)
    trainer.share_prompts = rollouts.share_prompts
    monitors.watch_judge(trainer.reward_funcs[0])
    trainer.add_callback(monitors)
    trainer.generation_checks.append(monitors.check_generation)
    return trainer


def build_composite(
    reward: RewardArguments, judge_settings: JudgeSettings, sources: set[str], resources: contextlib.ExitStack
) -> CompositeReward:
    """The composite reward of a recipe; its language models are asked once here, and closed with `resources`."""
    weights = reward.metric_weights
    raters = {
        name: resources.enter_context(LLM_METRICS[name].from_settings(settings))
        for name, settings in llm_metrics_of(reward, judge_settings).items()
    }
    cached = EngineSettings(cache_dir=reward.score_cache)
    metrics = load_parts(list(weights), reward.reward_backend, Path(reward.weights_dir), cached)
    judge = None
    if reward.weight_chexprompt:
        judge = resources.enter_context(Judge.from_settings(judge_settings))
    for rater in filter(None, (judge, *raters.values())):
        rater.check_sources(sources)
        asyncio.run(rater.check())
    weights |= reward.weight_llm_metrics or {}
    return CompositeReward(weights, metrics, judge, reward.weight_chexprompt, raters)


def llm_metrics_of(reward: RewardArguments, judge: JudgeSettings) -> dict[str, JudgeSettings]:
    """The settings of each metric of a language model that a reward asks for."""
    return settings_by_metric(list(reward.weight_llm_metrics or {}), reward.llm_metric_settings, judge)


def judge_costs(composite: CompositeReward) -> list[Observer]:
    """What logs the calls, tokens, share of cached input and money so far (TRL: the mean over processes) of the judge, as
    `judge/…`, and of each metric of a language model, as `<metric>/…`."""

    def spent(rater: Judge) -> Observer:
        return lambda _: rater.spending.logged("judge" if rater is composite.judge else rater.metric)

    return [spent(rater) for rater in (composite.judge, *composite.llm_metrics.values()) if isinstance(rater, Judge)]


def llm_metric_answers(settings: Mapping[str, JudgeSettings]) -> dict[str, Any]:
    """What decides the answers of the metrics of language models, as `judge_answers`.

    Raises:
        JudgeError: a package whose prompt is asked with is not installed.
    """
    return {
        f"{name}_{key.removeprefix('judge_')}": value
        for name, of_one in settings.items()
        for key, value in judge_answers(of_one, LLM_METRICS[name]).items()
    }


def judge_answers(settings: JudgeSettings, metric: type[LlmMetric] | None = None) -> dict[str, Any]:
    """What decides the answers of the judge, or of a metric of a language model: a stage does not resume with another judge,
    whose reward would be another.

    Raises:
        JudgeError: judge_prompt_file cannot be read, or a metric's prompt cannot be had.
    """
    try:
        if metric is None:
            prompt = load_prompt(settings.judge_prompt_file, settings.judge_answer_format).version
        else:
            prompt = metric.prompt_for(settings.judge_model or "").version
    except ValueError as error:
        raise JudgeError(str(error)) from error
    offline = settings.judge_base_url == OFFLINE
    return {
        "judge_model": f"{judge_server.MODEL}@{judge_server.rules_version()}" if offline else settings.judge_model,
        "judge_prompt": prompt,
        "judge_temperature": settings.judge_temperature,
        "judge_max_tokens": settings.judge_max_tokens,
        "judge_extra_body": settings.judge_extra_body,
        "judge_answer_format": settings.judge_answer_format,
    }


def describe(composite: CompositeReward) -> str:
    """The reward as a formula of full metric names, stand-ins marked."""
    terms = [f"{weight:g} × {composite.full_name(name)}" for name, weight in composite.weights.items() if weight]
    if composite.judge is not None:
        terms.append(f"{composite.judge_weight:g} × 1/({composite.judge.name} errors + 1)")
    return " + ".join(terms)


if __name__ == "__main__":
    run_command(main)
