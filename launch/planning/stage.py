"""The figures of a stage, from its YAML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from foundation.errors import RecipeError
from foundation.machine import format_bytes
from launch.planning.assumed import Target
from launch.planning.figures import StagePlan
from launch.planning.fit import adapter_bytes, add_checkpoints, add_fit, quantised_bytes
from launch.planning.judge import add_judge
from launch.planning.passes import Passes, draw_passes
from launch.planning.recipe import (
    architecture_of,
    find,
    parse,
    recipe_files,
    rollouts_of_a_row,
    with_processes,
)
from launch.planning.studies import Sizes, image_pixels, sizes
from launch.planning.text import hours
from launch.planning.time import flops_per_token, generation_seconds, training_utilisation
from model.architectures import Architecture
from model.memory import (
    Batch,
    activation_bytes,
    film_bytes,
    generation_memory,
    share_for_training,
    training_memory,
    weights_trained_in,
)


@dataclass
class Stage:
    """A training stage as its YAML is parsed, among so many processes.

    Attributes:
        together: rollouts that a row of a device's batch holds; 1 in SFT.
        completion: tokens of a report as it is trained on, on average.
        adapter: parameters of LoRA's adapters; 0 where all weights train.
    """

    path: Path
    target: Target
    processes: int
    data: Any
    keys: Any
    model: Any
    training: Any
    rewards: Any | None
    rollouts: Any | None
    arch: Architecture
    size: Sizes
    together: int
    completion: float
    adapter: int

    @property
    def grpo(self) -> bool:
        return self.rollouts is not None

    @property
    def reference(self) -> bool:
        """Whether a frozen copy of the model is there too."""
        return self.grpo and self.training.beta > 0 and not self.model.use_peft

    @property
    def row_tokens(self) -> float:
        """Of a row of usual length: with the prior film and report, where any is shown them."""
        return self.size.longest + self.together * (self.completion + (self.together > 1))

    @property
    def rows_at_once(self) -> int:
        """Rows of a forward pass: a shared prompt's rollouts are one."""
        return math.ceil(self.training.per_device_train_batch_size / self.together)

    @property
    def checkpointed(self) -> float:
        """Share of an update's tokens for which layers are computed twice: those of long forward passes where passes of usual
        length keep their activations (training/kept_activations.py), else all or none."""
        if not self.training.gradient_checkpointing:
            return 0.0
        return 1 - self.passes.kept

    @cached_property
    def passes(self) -> Passes:
        """The forward passes of an update."""
        return draw_passes(
            self.size.drawn,
            processes=self.processes,
            passes=self.training.gradient_accumulation_steps,
            rows=self.rows_at_once,
            most=self.keys.checkpoint_above_tokens,
            together=self.together,
            longest_report=self.training.max_completion_length if self.grpo else math.inf,
            rollout_spread=self.target.assume.rollout_spread if self.grpo else 0.0,
            packed=self.keys.pack_studies,
            by_length=self.together > 1,
        )


def read_stage(path: Path, target: Target) -> tuple[Stage, Sequence[Any]]:
    """The stage, and all of its parsed arguments.

    Raises:
        RecipeError: the YAML is wrong, or its batch does not divide by the GPUs.
    """
    from settings.batch import set_global_batch

    asked = ("--judge_model", target.judge_model) if target.judge_model and path.stem.startswith("rl") else ()
    parsed = parse(path, (*target.batch_overrides, *asked))
    data, keys, model = (find(parsed, name) for name in ("DataArguments", "StageArguments", "ModelConfig"))
    training, grpo, processes = parsed[-1], path.stem.startswith("rl"), target.gpus or 1
    rollouts = find(parsed, "RolloutArguments") if grpo else None
    with_processes(training, processes)
    set_global_batch(keys, training, rollouts)
    arch = architecture_of(model.model_name_or_path, path)
    size = sizes(data.datasets, data.train_split, data.longitudinal, target, arch, data.dataset_weights)
    return Stage(
        path,
        target,
        processes,
        data,
        keys,
        model,
        training,
        find(parsed, "RewardArguments") if grpo else None,
        rollouts,
        arch,
        size,
        together=rollouts_of_a_row(training, rollouts.share_prompts) if grpo else 1,
        completion=min(size.report, training.max_completion_length) if grpo else size.report,
        adapter=arch.lora_parameters(model.lora_r, model.lora_target_modules) if model.use_peft else 0,
    ), parsed


def plan_training(path: Path, target: Target) -> StagePlan:
    """Figures of an SFT or GRPO stage.

    Raises:
        RecipeError: the YAML is wrong, or its batch does not divide by the GPUs.
    """
    stage, parsed = read_stage(path, target)
    plan = StagePlan(path.stem, str(path), stage.size.studies, datasets=list(stage.data.datasets))
    if not stage.model.model_name_or_path.startswith("outputs/"):
        plan.downloads["base model"] = 2 * stage.arch.parameters
    if stage.grpo and stage.rewards.reward_backend == "real":
        plan.downloads["metric weights"] = target.assume.metric_weights_bytes
    _add_work(plan, stage)
    trained_in = _add_memory(plan, stage)
    _add_time(plan, stage)
    if stage.grpo and stage.rewards.weight_chexprompt:
        add_judge(plan, stage.size, find(parsed, "JudgeSettings"), target, stage.processes)
    add_checkpoints(plan, stage.training, stage.model, stage.arch, stage.keys, trained_in)
    if stage.grpo and stage.keys.keep_best and plan.checkpoints and target.gpus:
        add_validation(plan, stage.keys, stage.training, target, stage.processes, stage.arch, stage.size)
    if target.gpus:
        add_fit(plan, stage.arch, stage.training, stage.model, target, stage.grpo, stage.together > 1)
    return plan


def _add_work(plan: StagePlan, stage: Stage) -> None:
    """Steps, rollouts and tokens."""
    training = stage.training
    rows = training.per_device_train_batch_size * stage.processes * training.gradient_accumulation_steps
    per_study = training.num_generations * training.num_iterations if stage.grpo else 1
    plan.steps = (
        training.max_steps
        if training.max_steps > 0
        else math.ceil(stage.size.studies * per_study * training.num_train_epochs / rows)
    )
    rows_seen = plan.steps * rows
    # A shared prompt's last token stands before each report.
    plan.tokens_trained = rows_seen * (stage.size.prompt / stage.together + stage.completion + (stage.together > 1))
    if stage.grpo:
        plan.rollouts = rows_seen // training.num_iterations  # the steps that reuse a generation each take a part of it
        plan.rollouts_a_generation = rows * training.steps_per_generation // training.gradient_accumulation_steps
        plan.tokens_generated = plan.rollouts * stage.completion


def _add_memory(plan: StagePlan, stage: Stage) -> str | None:
    """Bytes of a GPU while training; what weights are trained in, as `weights_trained_in` says."""
    target, arch, model, training = stage.target, stage.arch, stage.model, stage.training
    half = model.dtype != "float32" and not model.use_peft
    room = target.kind.memory * share_for_training(training) if target.gpus else None
    trained_in = weights_trained_in(arch.parameters, target.parallel, room, stage.reference) if half else None
    bytes_each = 4 if model.dtype == "float32" else 2
    plan.memory = training_memory(
        arch,
        parallel=target.parallel,
        gpus=stage.processes,
        bytes_each=bytes_each,
        trainable=0.0 if model.use_peft else 1.0,
        batch=_batch(stage, (training.max_completion_length if stage.grpo else 2 * stage.size.report)),
        checkpointing=bool(training.gradient_checkpointing),
        reference=stage.reference,
        on_gpu=bool(target.gpus),
        trained_in=trained_in,
        reward_models=stage.grpo and stage.rewards.reward_backend == "real",
    )
    if training.gradient_checkpointing and (limit := stage.keys.checkpoint_above_tokens):
        usual = _batch(stage, stage.completion)
        longest = _batch(stage, training.max_completion_length if stage.grpo else 2 * stage.size.report)
        kept = replace(usual, tokens=min(limit / usual.rows, longest.tokens))
        plan.memory["activations"] = max(
            plan.memory["activations"], activation_bytes(arch, kept, bytes_each, checkpointing=False)
        )
    if bits := 4 * model.load_in_4bit or 8 * model.load_in_8bit:
        plan.memory["weights"] = quantised_bytes(arch, bits, bool(model.use_bnb_nested_quant))
    if stage.adapter:
        plan.memory["adapter"] = adapter_bytes(stage.adapter, target.parallel, stage.processes)
    elif trained_in == "float32":
        plan.notes.append(
            f"{target.parallel}: weights are trained in float32 and computed with in {model.dtype}; its steps round away"
        )
    elif trained_in:
        plan.notes.append(
            f"{target.parallel}: float32 weights do not fit, so bfloat16 ones take steps that are rounded at random, right on "
            "average; zero2, zero3 and fsdp2 keep a float32 copy"
        )
    if stage.grpo:
        held = training.per_device_train_batch_size * training.steps_per_generation / stage.together
        plan.memory["films"] = held * stage.size.images * film_bytes(arch, image_pixels(arch, target.assume))
    plan.peak = sum(plan.memory.values())
    return trained_in


def _batch(stage: Stage, report: float) -> Batch:
    """A forward pass in which every row is a study with a prior, and every report has so many tokens."""
    shared, longest = stage.together > 1, stage.size.longest
    return Batch(
        rows=stage.rows_at_once,
        tokens=math.ceil(longest + stage.together * (report + shared)),
        images=stage.size.most_images,
        image_pixels=image_pixels(stage.arch, stage.target.assume),
        repeated=stage.rows_at_once * stage.together * (longest + 2 * report) * shared,
    )


def _add_time(plan: StagePlan, stage: Stage) -> None:
    """Hours of each part of the training processes' work; the judge's and validation's come later."""
    target, arch, training, processes = stage.target, stage.arch, stage.training, stage.processes
    utilisation, plan.hours_by = training_utilisation(target, "grpo" if stage.grpo else "sft")
    if not target.gpus:
        return
    # Attention, which the measured utilisation leaves out, is a larger share of a row that holds its prompt once.
    together, own = stage.together, stage.completion + 1
    pairs = (stage.size.prompt**2 / 2 + together * own * (stage.size.prompt + own)) * (together > 1)
    attention = 4 * arch.num_hidden_layers * arch.attention_width * pairs / (stage.size.prompt + together * own)
    trained = stage.adapter / arch.parameters if stage.adapter else 1.0
    each = flops_per_token(arch.parameters, stage.checkpointed, trained) + attention * (3 + stage.checkpointed)
    flops = {"update": each * plan.tokens_trained}
    if stage.grpo:
        flops["old log-probabilities"] = (
            (2 * arch.parameters + attention) * plan.tokens_trained / training.num_iterations
        )
        if training.beta > 0:
            flops["reference log-probabilities"] = flops["old log-probabilities"]
    seconds = {part: total / (target.kind.flops * utilisation) / processes for part, total in flops.items()}
    plan.rests_on = dict.fromkeys(seconds, "measured" if "measured" in plan.hours_by else "assumed")
    plan.waiting = (stage.passes.longest - 1) * sum(seconds.values()) / 3600
    if 0 < stage.checkpointed < 1 and not stage.size.measured:
        plan.rests_on["update"] += ", lengths assumed"
    if stage.grpo:
        if training.use_vllm and training.vllm_mode == "server":
            plan.server_gpus = 1 if target.server_gpus is None else target.server_gpus
        generating = generation_seconds(plan, arch, stage.size, training, target)
        seconds["generation"] = generating / (plan.server_gpus or processes)
        # TRL asks its processor twice for every rollout.
        films = plan.rollouts * stage.size.images * (1 / training.num_generations if together > 1 else 2)
        seconds["films"] = films * target.assume.image_seconds / processes
        plan.rests_on |= {"generation": "assumed", "films": "measured"}
        if stage.rewards.reward_backend == "real":
            seconds["rewards"] = plan.rollouts * target.assume.reward_seconds / processes
            plan.rests_on["rewards"] = "measured"
    plan.hours_of = {part: total / 3600 for part, total in seconds.items()}
    plan.hours = sum(plan.hours_of.values())
    plan.gpu_hours = plan.hours * (processes + plan.server_gpus)


def add_validation(
    plan: StagePlan, stage: Any, training: Any, target: Target, processes: int, arch: Architecture, size: Sizes
) -> None:
    """Hours of rating each checkpoint while training, instead of loading each one afterwards."""
    each = target.assume.validation_studies * len(stage.validation_datasets or plan.datasets)
    if stage.validation_studies is not None:
        each = min(each, stage.validation_studies * len(stage.validation_datasets or plan.datasets))
    rollout = generation_seconds(plan, arch, size, training, target) / max(plan.rollouts, 1)
    wall = plan.saves * each * rollout / (plan.server_gpus or processes)
    loading = plan.saves * 2 * arch.parameters / target.assume.disk_bandwidth
    plan.hours_of["validation"] = wall / 3600
    plan.rests_on["validation"] = "assumed"
    plan.hours += wall / 3600
    plan.gpu_hours += wall / 3600 * (processes + plan.server_gpus + plan.judge_gpus)
    plan.notes.append(
        f"validation: {plan.saves} × {each:,} greedy reports while training, {hours(wall / 3600)}; afterwards, on one GPU, it "
        f"would be {hours((wall * processes + loading) / 3600)}, each model loaded again"
    )


def plan_evaluation(path: Path, target: Target, arch: Architecture) -> StagePlan:
    """Figures of the evaluation of one model."""
    parsed = parse(path)
    evaluation, judge = parsed
    size = sizes(
        [*evaluation.datasets, *evaluation.zero_shot_datasets], evaluation.split, evaluation.longitudinal, target, arch
    )
    plan = StagePlan(
        path.stem, str(path), size.studies, datasets=[*evaluation.datasets, *evaluation.zero_shot_datasets]
    )
    if evaluation.reward_backend == "real":
        plan.downloads["metric weights"] = target.assume.metric_weights_bytes
    plan.tokens_generated = size.studies * size.report
    if target.gpus:
        parts = generation_memory(arch, target.kind.memory * 0.9)
        plan.memory = {"weights": parts["weights"], "activations": parts["overhead"]}
        plan.peak = sum(plan.memory.values())
        if parts["cache"] <= 0:
            plan.fits = False
            plan.advice.append(
                f"{format_bytes(parts['weights'])} of weights do not fit a {target.kind_name}; use more GPUs"
            )
        assume, kind = target.assume, target.kind
        concurrent = max(
            1.0, min(assume.max_concurrent, parts["cache"] / (arch.key_value_bytes() * (size.prompt + size.report)))
        )
        read = 2 * arch.text_parameters + concurrent * arch.key_value_bytes() * size.prompt
        decode = plan.tokens_generated * read / concurrent / (kind.bandwidth * assume.decode_utilisation)
        prefill = 2 * arch.parameters * size.prompt * size.studies / (kind.flops * assume.prefill_utilisation)
        plan.hours_of = {"prompts": prefill / 3600, "generation": decode / 3600}
        plan.rests_on = dict.fromkeys(plan.hours_of, "assumed")
        plan.gpu_hours = plan.hours = sum(plan.hours_of.values())
    if judge.judge_base_url:
        plan.rollouts, rollouts = size.studies, plan.rollouts
        add_judge(plan, size, judge, target)
        plan.rollouts = rollouts
    return plan


def plan_recipe(recipe: str, target: Target, stages: Sequence[str] = ()) -> list[StagePlan]:
    """The named stages of a recipe (names of its YAML files), or its own four, which are one run; a variant is another.

    Raises:
        RecipeError: one of its files is wrong, or cannot run on so many GPUs.
    """
    files = {path.stem: path for path in recipe_files(recipe)}
    if unknown := sorted(set(stages) - set(files)):
        raise RecipeError(f"recipe {recipe} has no {', '.join(unknown)}; it has {', '.join(files)}")
    plans = []
    own = [name for name in ("sft", "rl_step1", "rl_step2", "eval") if name in files]
    for path in (files[name] for name in stages or own or files):
        if path.stem.startswith("eval"):
            asked = [name for name in stages if name.startswith("sft")]
            first = files[asked[0]] if asked else path.parent / "sft.yaml"
            model = find(parse(first), "ModelConfig").model_name_or_path if first.is_file() else ""
            plans.append(plan_evaluation(path, target, architecture_of(model, path)))
        else:
            plans.append(plan_training(path, target))
    return plans
