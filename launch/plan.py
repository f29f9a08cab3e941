"""What a recipe will cost, before anything is downloaded: memory a GPU, steps, tokens, hours, judge calls, disk.

    python -m launch.plan --recipe unirg_cxr --gpus 8 --gpu h100 [--parallel zero3] [--json]

Every YAML of the recipe is parsed as its stage parses it, so a wrong key, reward weights that do not sum, or a batch
that does not divide by the GPUs ends here with one line (exit status 2). Exit status 1: a stage does not fit. Figures
that are not known before a run are assumptions, and printed with the result.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from common import machine
from common.errors import RecipeError, run_command
from common.governance import host_of, is_loopback
from common.machine import format_bytes
from common.stage_command import settings_of
from model.architectures import ARCHITECTURES, Architecture, architecture, checkpoint_bytes
from model.memory import (
    PARALLEL,
    Batch,
    film_bytes,
    generation_memory,
    serving_memory,
    share_for_training,
    training_memory,
    weights_trained_in,
)

REPOSITORY = Path(__file__).resolve().parent.parent
MIB = 2**20
_SERVER_SHARE = 0.9  # of its GPUs that a vLLM server takes (launch/vllm_server.sh)
JUDGE_MARGIN = 1.5  # of the judge's limits over its planned time
_JUDGE_SHARE = 0.92  # and the judge's (launch/judge_server.sh)


@dataclass(frozen=True)
class GpuKind:
    """A GPU: memory in bytes, dense bfloat16 FLOP/s, memory bandwidth in bytes/s."""

    memory: float
    flops: float
    bandwidth: float


# Memory as nvidia-smi gives it.
GPUS = {
    "rtx4090": GpuKind(24564 * MIB, 165e12, 1.01e12),
    "l40s": GpuKind(46068 * MIB, 362e12, 0.86e12),
    "a100-40": GpuKind(40960 * MIB, 312e12, 1.56e12),
    "a100": GpuKind(81920 * MIB, 312e12, 2.04e12),
    "h100": GpuKind(81559 * MIB, 989e12, 3.35e12),
    "h200": GpuKind(143771 * MIB, 989e12, 4.8e12),
    "b200": GpuKind(183359 * MIB, 2250e12, 8.0e12),
}

# Training studies where a data set is not prepared yet: published counts, before those without a report are dropped; MIMIC's
# without the 1,024 that validate, IU X-ray's without ReXrank's test.
PUBLISHED_STUDIES = {"mimic": 221_734, "chexpert_plus": 187_511, "rexgradient": 140_000, "iu_xray": 2_365}
# Share of them with a prior: all but each patient's first (MIMIC-CXR: 227,835 studies of 65,379 patients; ReXGradient: 140,000
# of 95,716). CheXpert Plus' are not linked by default, IU X-ray has none.
PUBLISHED_PRIORS = {"mimic": 0.71, "chexpert_plus": 0.0, "rexgradient": 0.32, "iu_xray": 0.0}
PUBLISHED_TEST = {"mimic": 2_347, "chexpert_plus": 200, "rexgradient": 10_000, "iu_xray": 590}


@dataclass(frozen=True)
class Assumptions:
    """What is not known before a run. `--assume name=value` changes one."""

    image_pixels: int = 512  # a side (paper, Tasks)
    template_tokens: int = 75  # the paper's prompt, with chat markers
    context_tokens: int = 40  # indication and comparison
    report_tokens: int = 140
    tokens_per_word: float = 1.7  # Qwen's vocabulary on the 294 reports of IU X-ray's validation (1.698)
    training_utilisation: float = 0.2  # share of the data sheet's FLOP/s that training reaches (an H100: 0.19 to 0.22)
    prefill_utilisation: float = 0.4
    decode_utilisation: float = (
        0.4  # share of the bandwidth that decoding reaches (benchmarks/gpu.json: an H100's rollouts)
    )
    max_concurrent: int = 256  # sequences that vLLM decodes at once on one GPU
    reward_seconds: float = 0.002  # of one GPU, for the metrics of one rollout (an H100, float32: benchmarks/gpu.json)
    image_bytes: int = 160_000  # of a prepared image
    image_seconds: float = 0.026  # of one core, for the model's image processor (512 pixels a side, measured)
    validation_studies: int = 1_024  # of a data set (paper, Dataset Details)
    disk_bandwidth: float = 1e9  # bytes a second that a checkpoint is read with
    judge_rubric_tokens: int = 2_600  # instructions and examples, the same in each call
    judge_answer_tokens: int = 60
    judge_parameters: float = 32.8e9  # Qwen3-32B
    metric_weights_bytes: int = 3_500_000_000  # CheXbert, RadGraph, distilroberta and RaTEScore, downloaded
    judge_cache_bytes: int = 262_144  # of KV cache a token: Qwen3-32B, 64 layers of 8 heads of 128, in bfloat16


@dataclass
class StagePlan:
    """One stage's figures. Memory in bytes for one GPU: parts while training, parts while vLLM generates beside it.

    Attributes:
        hours: wall time, the judge's included.
        hours_of: of them, each part's.
        gpu_hours: of all GPUs that are held for so long: those that train, a vLLM server's, the judge's.
        judge_hours: wall time of the judge's calls on its own GPUs; 0 where it has none here.
    """

    stage: str
    file: str
    studies: int
    steps: int = 0
    rollouts: int = 0
    rollouts_a_generation: int = 0
    tokens_trained: float = 0
    tokens_generated: float = 0
    memory: dict[str, float] = field(default_factory=dict)
    generating: dict[str, float] = field(default_factory=dict)
    peak: float = 0
    fits: bool = True
    gpu_hours: float = 0
    hours: float = 0
    hours_of: dict[str, float] = field(default_factory=dict)
    hours_by: str = "assumed utilisation"
    judge: str = ""
    judge_calls: int = 0
    judge_tokens_in: float = 0
    judge_tokens_out: float = 0
    judge_dollars: float | None = None
    judge_gpus: int = 0
    judge_hours: float = 0
    server_gpus: int = 0
    saves: int = 0
    checkpoints: int = 0
    checkpoint_bytes: float = 0
    momentary_bytes: float = 0  # beside these, while one is written: older ones go once it is whole
    advice: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    downloads: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """Where the recipe is to run."""

    gpus: int
    kind_name: str
    parallel: str
    data_dir: Path
    assume: Assumptions
    batch_overrides: tuple[str, ...] = ()
    judge_gpus: int | None = None  # None: one for a judge on this machine, none for another
    server_gpus: int | None = None  # None: one where vllm_mode is server
    memory: float | None = None  # bytes of a GPU that is there; None: what its kind has

    @property
    def kind(self) -> GpuKind:
        kind = GPUS[self.kind_name]
        return kind if self.memory is None else replace(kind, memory=self.memory)


@dataclass(frozen=True)
class Sizes:
    """Mean sizes of a study, in tokens of the language model.

    Attributes:
        longest, most_images: prompt and images of a study with prior image and report, where any is shown them.
    """

    studies: int
    prompt: float
    report: float
    images: float
    measured: bool
    longest: float
    most_images: int


# ---- reading the recipe -----------------------------------------------------------------------------------------------


def recipe_files(recipe: str) -> list[Path]:
    """The YAML files of a recipe, in the order of its stages.

    Raises:
        RecipeError: there is no such recipe.
    """
    order = {"sft": 0, "rl": 1, "eval": 2}
    files = sorted(
        (REPOSITORY / "recipes" / recipe).glob("*.yaml"),
        key=lambda path: (order.get(path.stem.split("_")[0], 3), path.stem),
    )
    if not files:
        known = sorted({path.parent.name for path in (REPOSITORY / "recipes").glob("*/*.yaml")})
        raise RecipeError(f"no recipe {recipe!r} in recipes/; there are {', '.join(known)}")
    return files


def parse(path: Path, overrides: Sequence[str] = ()) -> tuple[Any, ...]:
    """A YAML as its own stage reads it, on a machine without its GPUs.

    Raises:
        RecipeError: what the stage itself would refuse.
    """
    from trl import ModelConfig, SFTConfig

    from recipes.grpo import ARGUMENTS as GRPO_ARGUMENTS
    from rewards.chexprompt.judge import JudgeSettings
    from settings import arguments as our

    try:
        shown = path.relative_to(REPOSITORY)
    except ValueError:
        shown = path
    kind = path.stem.split("_")[0]
    on_cpu = ["--use_cpu", "true", "--bf16", "false", *overrides]
    # As recipes/sft.py and recipes/evaluate.py read them.
    types: dict[str, tuple[type, ...]] = {
        "sft": (our.DataArguments, our.StageArguments, ModelConfig, SFTConfig),
        "rl": GRPO_ARGUMENTS,
        "eval": (our.EvaluationArguments, JudgeSettings),
    }
    if kind in types:
        given = ["--config", str(path), *([] if kind == "eval" else on_cpu)]
        return our.parse_recipe(types[kind], given)
    raise RecipeError(f"{shown}: a recipe's files are named sft*.yaml, rl*.yaml and eval*.yaml")


def find(parsed: Sequence[Any], name: str) -> Any:
    """The parsed part of class `name`."""
    return next(part for part in parsed if type(part).__name__ == name)


def with_processes(training: Any, processes: int) -> Any:
    """`training` as it would be among `processes` processes: its world size decides how a batch divides."""
    training.__class__ = type("Planned", (type(training),), {"world_size": processes})
    return training


def sizes(
    datasets: Sequence[str],
    split: str,
    longitudinal: bool,
    target: Target,
    arch: Architecture,
    weights: Sequence[float] = (),
) -> Sizes:
    """Studies and their mean tokens: counted where the data set is prepared, else published counts and assumptions.

    `weights` are the recipe's `dataset_weights`: how many times each data set's studies are taken.

    Raises:
        RecipeError: a data set that is neither prepared nor known.
    """
    assume = target.assume
    image = arch.image_tokens(image_pixels(arch, assume))
    total, prompt, report, images, measured = 0, 0.0, 0.0, 0.0, True
    longest, most_images = 0.0, 1
    for name, weight in zip(datasets, weights or [1.0] * len(datasets), strict=True):
        path = target.data_dir / name / f"{split}.parquet"
        if path.is_file():
            n, words, prior_words, context_words, priors = _counted(path)
            report_tokens, context = words * assume.tokens_per_word, context_words * assume.tokens_per_word
            prior_tokens = prior_words * assume.tokens_per_word
        else:
            published = PUBLISHED_TEST if split == "test" else PUBLISHED_STUDIES
            if name not in published:
                phantom = name.startswith("phantom_")
                command = "make demo-data RECIPE=demo" if phantom else f"make data DATASET={name} SOURCE=/path/to/it"
                raise RecipeError(
                    f"{path} is not there, and no published size of {name} is known; prepare it first: {command}"
                )
            n, measured, priors = published[name], False, PUBLISHED_PRIORS[name]
            report_tokens, context, prior_tokens = assume.report_tokens, assume.context_tokens, assume.report_tokens
        n = round(n * weight)
        pair = longitudinal and priors > 0
        most_images = max(most_images, 1 + pair)
        longest = max(longest, assume.template_tokens + context + image * (1 + pair) + prior_tokens * pair)
        shown = (1 + priors) if longitudinal else 1.0
        total += n
        report += n * report_tokens
        images += n * shown
        prompt += n * (
            assume.template_tokens + context + image * shown + (priors * prior_tokens if longitudinal else 0)
        )
    if not total:
        raise RecipeError(f"{', '.join(datasets)}: no studies in the split {split}")
    return Sizes(total, prompt / total, report / total, images / total, measured, longest, most_images)


def image_bytes(datasets: Iterable[str], data_dir: Path, assume: Assumptions) -> float:
    """Bytes of the prepared images of data sets, all splits: a study has one image; those of priors are other studies'."""
    import pyarrow.parquet as pq

    studies = 0
    for name in datasets:
        tables = [data_dir / name / f"{split}.parquet" for split in ("train", "validation", "test")]
        there = [path for path in tables if path.is_file()]
        studies += sum(pq.read_metadata(path).num_rows for path in there)
        if not there:
            studies += PUBLISHED_STUDIES.get(name, 0) + PUBLISHED_TEST.get(name, 0)
    return studies * assume.image_bytes


def image_pixels(arch: Architecture, assume: Assumptions) -> int:
    """Pixels a side of an image: as assumed, at most what the model's position embeddings were made for (tiny models)."""
    return min(assume.image_pixels, math.isqrt(arch.vision_num_position_embeddings) * arch.vision_patch_size)


def _counted(path: Path) -> tuple[int, float, float, float, float]:
    """Studies; mean words of report, of prior report (where there is one) and of context; share with a prior."""
    import pyarrow.parquet as pq

    columns = ["findings", "impression", "indication", "comparison", "prior_report"]
    table = pq.read_table(path, columns=columns).to_pydict()
    n = len(table["findings"])
    words = {name: sum(len((text or "").split()) for text in table[name]) for name in columns}
    priors = sum(text is not None for text in table["prior_report"])
    reports, context = words["findings"] + words["impression"], words["indication"] + words["comparison"]
    return n, reports / max(n, 1), words["prior_report"] / max(priors, 1), context / max(n, 1), priors / max(n, 1)


# ---- one stage --------------------------------------------------------------------------------------------------------


def plan_training(path: Path, target: Target) -> StagePlan:
    """Figures of an SFT or GRPO stage.

    Raises:
        RecipeError: the YAML is wrong, or its batch does not divide by the GPUs.
    """
    from settings.arguments import set_global_batch

    parsed = parse(path, target.batch_overrides)
    data, stage, model, training = (
        find(parsed, "DataArguments"),
        find(parsed, "StageArguments"),
        find(parsed, "ModelConfig"),
        parsed[-1],
    )
    grpo = path.stem.startswith("rl")
    processes = target.gpus or 1
    with_processes(training, processes)
    set_global_batch(stage, training, find(parsed, "RolloutArguments") if grpo else None)
    arch = _architecture(model.model_name_or_path, path)
    size = sizes(data.datasets, data.train_split, data.longitudinal, target, arch, data.dataset_weights)
    plan = StagePlan(path.stem, str(path), size.studies, datasets=list(data.datasets))
    if not model.model_name_or_path.startswith("outputs/"):
        plan.downloads["base model"] = 2 * arch.parameters
    if grpo and find(parsed, "RewardArguments").reward_backend == "real":
        plan.downloads["metric weights"] = target.assume.metric_weights_bytes
    rows = training.per_device_train_batch_size * processes * training.gradient_accumulation_steps
    per_study = training.num_generations if grpo else 1
    epochs = training.num_train_epochs
    plan.steps = (
        training.max_steps
        if training.max_steps > 0
        else math.ceil(size.studies * per_study * epochs * (training.num_iterations if grpo else 1) / rows)
    )
    rows_seen = plan.steps * rows
    completion = min(size.report, training.max_completion_length) if grpo else size.report
    together = rollouts_of_a_row(training, find(parsed, "RolloutArguments").share_prompts) if grpo else 1
    # A shared prompt's last token stands before each report.
    plan.tokens_trained = rows_seen * (size.prompt / together + completion + (together > 1))
    adapter = arch.lora_parameters(model.lora_r, model.lora_target_modules) if model.use_peft else 0
    longest_report = training.max_completion_length if grpo else 2 * size.report
    packed = math.ceil(training.per_device_train_batch_size / together)
    batch = Batch(  # at its largest: every row a study with a prior
        rows=packed,
        tokens=math.ceil(size.longest + together * (longest_report + (together > 1))),
        images=size.most_images,
        image_pixels=image_pixels(arch, target.assume),
        repeated=packed * together * (size.longest + longest_report) * (together > 1),
    )
    half = model.dtype != "float32" and not model.use_peft
    reference = grpo and training.beta > 0 and not model.use_peft
    room = target.kind.memory * share_for_training(training) if target.gpus else None
    trained_in = weights_trained_in(arch.parameters, target.parallel, room, reference) if half else None
    plan.memory = training_memory(
        arch,
        parallel=target.parallel,
        gpus=processes,
        bytes_each=4 if model.dtype == "float32" else 2,
        trainable=0.0 if model.use_peft else 1.0,
        batch=batch,
        checkpointing=bool(training.gradient_checkpointing),
        reference=reference,
        on_gpu=bool(target.gpus),
        trained_in=trained_in,
        reward_models=grpo and find(parsed, "RewardArguments").reward_backend == "real",
    )
    if bits := 4 * model.load_in_4bit or 8 * model.load_in_8bit:
        plan.memory["weights"] = quantised_bytes(arch, bits, bool(model.use_bnb_nested_quant))
    if adapter:
        plan.memory["adapter"] = adapter_bytes(adapter, target.parallel, processes)
    elif trained_in == "float32":
        plan.notes.append(
            f"{target.parallel}: weights are trained in float32 and computed with in {model.dtype}; its steps round away"
        )
    elif trained_in:
        plan.notes.append(
            f"{target.parallel}: float32 weights do not fit, so bfloat16 ones take steps that are rounded at random, right on "
            "average; zero2, zero3 and fsdp2 keep a float32 copy"
        )
    if grpo:
        held = training.per_device_train_batch_size * training.steps_per_generation / together
        plan.memory["films"] = held * size.images * film_bytes(arch, image_pixels(arch, target.assume))
    plan.peak = sum(plan.memory.values())
    trained = adapter / arch.parameters if adapter else 1.0
    checkpointing = bool(training.gradient_checkpointing)
    # Attention, which the measured utilisation leaves out, is a larger share of a row that holds its prompt once.
    row, own = size.prompt + together * (completion + 1), completion + 1
    pairs = (size.prompt**2 / 2 + together * own * (size.prompt + own)) * (together > 1)
    attention = 4 * arch.num_hidden_layers * arch.attention_width * pairs / row
    update = _flops_per_token(arch.parameters, checkpointing, trained) + attention * (3 + checkpointing)
    flops = {"update": update * plan.tokens_trained}
    if grpo:
        plan.rollouts = rows_seen // training.num_iterations  # the steps that reuse a generation each take a part of it
        plan.rollouts_a_generation = rows * training.steps_per_generation // training.gradient_accumulation_steps
        plan.tokens_generated = plan.rollouts * completion
        flops["old log-probabilities"] = (
            (2 * arch.parameters + attention) * plan.tokens_trained / training.num_iterations
        )
        if training.beta > 0:
            flops["reference log-probabilities"] = flops["old log-probabilities"]
    utilisation, plan.hours_by = training_utilisation(target, "grpo" if grpo else "sft")
    seconds = {}
    if target.gpus:
        seconds = {part: each / (target.kind.flops * utilisation) / processes for part, each in flops.items()}
    if grpo and target.gpus:
        if training.use_vllm and training.vllm_mode == "server":
            plan.server_gpus = 1 if target.server_gpus is None else target.server_gpus
        seconds["generation"] = _generation_seconds(plan, arch, size, training, target) / (
            plan.server_gpus or processes
        )
        # TRL asks its processor twice for every rollout.
        films = plan.rollouts * size.images * (1 / training.num_generations if together > 1 else 2)
        seconds["films"] = films * target.assume.image_seconds / processes
        if find(parsed, "RewardArguments").reward_backend == "real":
            seconds["rewards"] = plan.rollouts * target.assume.reward_seconds / processes
    plan.hours_of = {part: each / 3600 for part, each in seconds.items()}
    plan.hours = sum(plan.hours_of.values())
    plan.gpu_hours = plan.hours * (processes + plan.server_gpus)
    if grpo and find(parsed, "RewardArguments").weight_chexprompt:
        _judge(plan, size, find(parsed, "JudgeSettings"), target, processes)
    _checkpoints(plan, training, model, arch, stage, trained_in)
    if grpo and stage.keep_best and plan.checkpoints and target.gpus:
        _validation(plan, stage, training, target, processes, arch, size)
    if target.gpus:
        _fit(plan, arch, training, model, target, grpo, together > 1)
    return plan


def rollouts_of_a_row(training: Any, share_prompts: bool) -> int:
    """Rollouts that a row of a device's batch holds: a study's, as far as they are in one batch."""
    return min(training.num_generations, training.per_device_train_batch_size) if share_prompts else 1


def quantised_bytes(arch: Architecture, bits: int, nested: bool) -> float:
    """Bytes of a base that bitsandbytes holds in 4 or 8 bits: its linear layers so, embeddings and head in 16.

    In 4 bits each block of 64 weights has a float32 scale; nested, an 8-bit one, and a float32 for 256 of those (Dettmers et
    al. 2023, QLoRA, section 3). In 8 bits each row has a float32 scale, which is nothing beside it.
    """
    embeddings = arch.vocab_size * arch.hidden_size * (1 if arch.tie_word_embeddings else 2)
    scales = ((1 + 4 / 256) / 64 if nested else 4 / 64) if bits == 4 else 0.0
    return (arch.parameters - embeddings) * (bits / 8 + scales) + 2 * embeddings


def adapter_bytes(parameters: int, parallel: str, gpus: int) -> float:
    """Bytes of a GPU for LoRA adapters: weights, gradients and Adam's two moments, 16 a parameter.

    PEFT loads them in float32 (autocast_adapter_dtype); under ZeRO-3 TRL has them in bfloat16, with DeepSpeed's float32 copy.
    """
    shared = {"zero3": 16, "fsdp2": 16, "zero2": 12}.get(parallel, 0) * parameters  # spread over the GPUs
    buckets = 4 * parameters if parallel == "ddp" else 0
    return shared / gpus + 16 * parameters - shared + buckets


def _architecture(name: str, path: Path) -> Architecture:
    """Of the stage's model; a stage that starts from an earlier one has the base model's."""
    known = architecture(name)
    if known is None and (base := path.parent / "sft.yaml").is_file():
        known = architecture(str(settings_of(["--config", str(base)]).get("model_name_or_path")))
    if known is None and name.startswith("outputs/demo"):
        known = TINY
    if known is None:
        raise RecipeError(
            f"{path.name}: the size of {name} is not known; known are {', '.join(ARCHITECTURES)}, and any Qwen3-VL folder"
        )
    return known


# The demo's base model before `make base` has built it (recipes/tiny_model.py; its vocabulary is about 600 tokens).
TINY = Architecture(
    640, 128, 256, 2, 4, 2, 32, True, 128, 256, 2, vision_num_position_embeddings=36, vision_deepstack=1
)


def _flops_per_token(parameters: int, checkpointing: bool, trainable: float) -> float:
    """2 a parameter forward, again with checkpointing, 2 for gradients of activations, 2 for those of weights."""
    return parameters * (2 * (2 if checkpointing else 1) + 2 + 2 * trainable)


def _generation_seconds(plan: StagePlan, arch: Architecture, size: Sizes, training: Any, target: Target) -> float:
    """GPU seconds of vLLM: prompts once a study (prefix caching), then decoding bound by memory bandwidth."""
    assume, kind = target.assume, target.kind
    prefill = 2 * arch.parameters * size.prompt * plan.rollouts / training.num_generations
    share = _SERVER_SHARE if plan.server_gpus else training.vllm_gpu_memory_utilization
    room = generation_memory(arch, kind.memory * share)["cache"]
    tokens_each = size.prompt / training.num_generations + training.max_completion_length
    concurrent = max(1.0, min(assume.max_concurrent, room / (arch.key_value_bytes() * tokens_each)))
    read = 2 * arch.text_parameters + concurrent * arch.key_value_bytes() * (size.prompt + size.report / 2)
    rate = concurrent / (read / (kind.bandwidth * assume.decode_utilisation))
    return prefill / (kind.flops * assume.prefill_utilisation) + plan.tokens_generated / rate


def training_utilisation(target: Target, stage: str) -> tuple[float, str]:
    """Share of the GPU's FLOP/s that training reaches, and where that is from.

    As measured on this kind of GPU for this stage (`sft` or `grpo`) where benchmarks/gpu.json has it and no other was
    assumed; counted as the plan counts arithmetic, so that it carries over to other sizes and to all weights.
    """
    assumed = target.assume.training_utilisation
    path = REPOSITORY / "benchmarks" / "gpu.json"
    if assumed != Assumptions.training_utilisation or not path.is_file():
        return assumed, f"assumed utilisation {assumed:g}"
    for entry in json.loads(path.read_text(encoding="utf-8")):
        rate = entry.get("update_only_tokens_per_second" if stage == "grpo" else "tokens_per_gpu_second")
        if entry["gpu"] == target.kind_name and entry["stage"] == stage and rate:
            # With gradient checkpointing, as all recipes train.
            each = _flops_per_token(entry["model_parameters"], True, 0.0 if entry["lora"] else 1.0)
            measured = each * rate / target.kind.flops
            return measured, f"utilisation {measured:.2f}, measured (benchmarks/gpu.json)"
    return assumed, f"assumed utilisation {assumed:g}"


def _judge(plan: StagePlan, size: Sizes, settings: Any, target: Target, processes: int = 1) -> None:
    """Calls, tokens, price, and the time on GPUs of the judge's own, for which training waits: TRL scores a generation
    before it trains on it."""
    plan.judge = settings.judge_model if settings.judge_base_url != "offline" else "offline-rules-judge (a stand-in)"
    plan.judge_calls = plan.rollouts
    plan.judge_tokens_in = plan.judge_calls * (target.assume.judge_rubric_tokens + 2 * size.report)
    plan.judge_tokens_out = plan.judge_calls * target.assume.judge_answer_tokens
    if settings.judge_price_input is not None and settings.judge_price_output is not None:
        plan.judge_dollars = (
            plan.judge_tokens_in * settings.judge_price_input + plan.judge_tokens_out * settings.judge_price_output
        ) / 1e6
    if not target.gpus or settings.judge_base_url == "offline":
        return
    local = is_loopback(host_of(settings.judge_base_url))
    plan.judge_gpus = int(local) if target.judge_gpus is None else target.judge_gpus
    if not plan.judge_gpus:
        return
    plan.downloads["judge"] = 2 * target.assume.judge_parameters
    least, seconds = _judge_seconds(plan, size, settings.judge_concurrency * processes, target)
    if seconds is None:
        plan.fits = False
        plan.advice.append(
            f"one copy of the judge takes {least} GPUs of this kind: JUDGE_GPUS={least}, or a smaller judge"
        )
        return
    plan.judge_hours = seconds / 3600
    if plan.steps:
        _judge_limits(plan, settings, seconds / plan.judge_calls, processes)
    if plan.judge_hours > plan.hours:
        plan.advice.append(
            f"the judge is the bottleneck ({hours(plan.judge_hours)} against {hours(plan.hours)} of all else): more GPUs "
            f"for it (JUDGE_GPUS={2 * plan.judge_gpus}), or a smaller one"
        )
    plan.hours += plan.judge_hours
    plan.hours_of["judge"] = plan.judge_hours
    plan.gpu_hours = plan.hours * (processes + plan.server_gpus + plan.judge_gpus)


def _judge_limits(plan: StagePlan, settings: Any, seconds_a_call: float, processes: int) -> None:
    """Advice where the judge's limits leave no half as much again over what the plan expects of it: a stage that passes
    them stops, its judge having failed.

    Each process sends its part of a generation at once, `judge_concurrency` calls at a time; all share the server.
    """
    waiting = settings.judge_concurrency * processes * seconds_a_call
    batch = plan.rollouts_a_generation * seconds_a_call
    for name, limit, expected, what in (
        (
            "judge_timeout",
            settings.judge_timeout,
            waiting,
            f"a call waits for the {settings.judge_concurrency * processes:,} in flight",
        ),
        (
            "judge_batch_timeout",
            settings.judge_batch_timeout,
            batch,
            f"a generation's {plan.rollouts_a_generation:,} rollouts are judged",
        ),
    ):
        if limit is not None and limit < JUDGE_MARGIN * expected:
            wanted = math.ceil(2 * expected / 60) * 60
            plan.advice.append(
                f"{what} in {expected:,.0f} s as planned, and {name} is {limit:g}: a judge somewhat slower stops the stage; "
                f"{name}: {wanted}, or more GPUs for it"
            )


def _judge_seconds(plan: StagePlan, size: Sizes, in_flight: int, target: Target) -> tuple[int, float | None]:
    """GPUs that one copy of the judge takes, and the wall seconds of all its calls; None where it has fewer GPUs.

    A call's own tokens are computed once (the rubric stays in the prefix cache), its answer is decoded: each step reads
    the weights and the cache of every call in flight, the rubric's part included.
    """
    assume, kind = target.assume, target.kind
    least = next(
        n
        for n in (2**power for power in range(20))
        if serving_memory(assume.judge_parameters, kind.memory * _JUDGE_SHARE, n)["cache"] > 0
    )
    copies = plan.judge_gpus // least
    if not copies:
        return least, None
    own = plan.judge_tokens_in / plan.judge_calls - assume.judge_rubric_tokens
    room = least * serving_memory(assume.judge_parameters, kind.memory * _JUDGE_SHARE, least)["cache"]
    held = room / assume.judge_cache_bytes - assume.judge_rubric_tokens  # tokens of cache, for calls' own
    together = max(1.0, min(assume.max_concurrent, in_flight / copies, held / (own + assume.judge_answer_tokens)))
    context = assume.judge_rubric_tokens + own + assume.judge_answer_tokens / 2
    read = 2 * assume.judge_parameters + together * assume.judge_cache_bytes * context
    decode = plan.judge_tokens_out / together * read / (least * kind.bandwidth * assume.decode_utilisation)
    prefill = 2 * assume.judge_parameters * own * plan.judge_calls / (least * kind.flops * assume.prefill_utilisation)
    return least, (decode + prefill) / copies


def _checkpoints(
    plan: StagePlan, training: Any, model: Any, arch: Architecture, stage: Any, trained_in: str | None
) -> None:
    """Disk of the checkpoints and of the final model. `trained_in`: as `weights_trained_in`."""
    if str(training.save_strategy) == "no":
        return
    every = training.save_steps if training.save_steps >= 1 else max(1, round(training.save_steps * plan.steps))
    plan.saves = max(1, math.ceil(plan.steps / every))
    limit = stage.keep_best + 1 if stage.keep_best else training.save_total_limit or plan.saves
    plan.checkpoints = min(plan.saves, limit)
    keep = stage.keep_optimizer_states
    # For a moment one more is whole: the older ones are trimmed once the newest is written.
    whole = plan.checkpoints if keep is None else min(keep + (not stage.keep_best), plan.checkpoints)
    dtype = "float32" if trained_in == "float32" else model.dtype
    settings = {"dtype": dtype, "use_peft": model.use_peft, "save_only_model": training.save_only_model}
    weights_only = checkpoint_bytes(arch.parameters, settings | {"save_only_model": True})
    each = checkpoint_bytes(arch.parameters, settings)
    final = checkpoint_bytes(arch.parameters, {"dtype": dtype, "save_only_model": True})  # an adapter is merged
    plan.checkpoint_bytes = whole * each + (plan.checkpoints - whole) * weights_only + final
    if (
        plan.saves > plan.checkpoints and not stage.keep_best
    ):  # where older ones are trimmed, `whole` counts their states
        plan.momentary_bytes = each if keep is None else weights_only
    if stage.keep_best:
        plan.momentary_bytes = each
        # Once there is a final model, the newest checkpoint keeps its model alone.
        plan.checkpoint_bytes = max(plan.checkpoint_bytes - final, plan.checkpoints * weights_only + final)
        every_one = (plan.saves - whole) * weights_only + whole * each + final
        plan.notes.append(
            f"disk: {plan.checkpoints} of {plan.saves} checkpoints stay, {format_bytes(plan.checkpoint_bytes)} (all of them: "
            f"{format_bytes(every_one)})"
        )
    if whole > 10 and not training.save_only_model:
        plan.advice.append(
            f"{whole} checkpoints with optimiser state take {format_bytes(whole * each)}; keep that of the newest only "
            "(keep_optimizer_states), keep fewer (save_total_limit) or save them further apart (save_steps)"
        )


def _validation(
    plan: StagePlan, stage: Any, training: Any, target: Target, processes: int, arch: Architecture, size: Sizes
) -> None:
    """Hours of rating each checkpoint while training, instead of loading each one afterwards."""
    each = target.assume.validation_studies * len(stage.validation_datasets or plan.datasets)
    if stage.validation_studies is not None:
        each = min(each, stage.validation_studies * len(stage.validation_datasets or plan.datasets))
    rollout = _generation_seconds(plan, arch, size, training, target) / max(plan.rollouts, 1)
    wall = plan.saves * each * rollout / (plan.server_gpus or processes)
    loading = plan.saves * 2 * arch.parameters / target.assume.disk_bandwidth
    plan.hours_of["validation"] = wall / 3600
    plan.hours += wall / 3600
    plan.gpu_hours += wall / 3600 * (processes + plan.server_gpus + plan.judge_gpus)
    plan.notes.append(
        f"validation: {plan.saves} × {each:,} greedy reports while training, {hours(wall / 3600)}; afterwards, on one GPU, it "
        f"would be {hours((wall * processes + loading) / 3600)}, each model loaded anew"
    )


def _fit(
    plan: StagePlan, arch: Architecture, training: Any, model: Any, target: Target, grpo: bool, share_prompts: bool
) -> None:
    """Whether it fits, and otherwise what to change, in the order of what costs least."""
    memory = target.kind.memory
    if grpo and training.use_vllm and training.vllm_mode == "colocate":
        share = memory * training.vllm_gpu_memory_utilization
        parts = generation_memory(arch, share, training.vllm_tensor_parallel_size)
        if parts["cache"] <= 0:
            plan.fits = False
            plan.advice.append(
                f"vLLM's share ({training.vllm_gpu_memory_utilization:g} of the GPU, {format_bytes(share)}) does not hold "
                f"the model ({format_bytes(parts['weights'])}): raise vllm_gpu_memory_utilization or "
                "vllm_tensor_parallel_size, or use vllm_mode: server"
            )
        lasting = ("films", "weights", "gradients", "optimiser", "adapter", "reference", "reward models", "overhead")
        held = sum(plan.memory.get(name, 0.0) for name in lasting)
        # Asleep, vLLM gives its share back while the trainer works; awake, it meets the trainer's lasting part only.
        trainer = held if training.vllm_enable_sleep_mode else plan.peak
        plan.generating = {"trainer": trainer, "vLLM's weights": parts["weights"], "KV cache": max(0.0, parts["cache"])}
        plan.generating["vLLM's overhead"] = parts["overhead"]
        plan.peak = max(plan.peak, trainer + share)
    if plan.peak <= memory:
        return
    plan.fits = False
    over = format_bytes(plan.peak - memory)
    plan.advice.append(f"{format_bytes(plan.peak)} a GPU, {over} more than a {target.kind_name} has")
    if not training.gradient_checkpointing:
        plan.advice.append("gradient_checkpointing: true")
    if target.parallel in ("ddp", "single") and target.gpus > 1:
        plan.advice.append("shard the model and its optimiser: PARALLEL=zero3 (or fsdp2)")
    if plan.memory.get("films", 0) > 0.1 * memory and not share_prompts:
        plan.advice.append("share_prompts: true holds a study's films once, not once a rollout")
    if training.per_device_train_batch_size > 1 and plan.memory["activations"] > 0.1 * memory:
        plan.advice.append("a smaller per_device_train_batch_size (the global batch stays)")
    if grpo and training.use_vllm and training.vllm_mode == "colocate":
        plan.advice.append("vLLM on GPUs of its own: vllm_mode: server, make vllm-server")
    if not model.use_peft:
        needed = next(
            (n for n in (2, 4, 8, 16, 32, 64) if n > target.gpus and _peak_with(plan, target.gpus, n) <= memory), None
        )
        if needed:
            plan.advice.append(f"GPUS={needed} with PARALLEL=zero3")
        plan.advice.append("LoRA: use_peft: true, lora_r: 64")


def _peak_with(plan: StagePlan, now: int, gpus: int) -> float:
    """The peak were what can be sharded spread over `gpus` instead of `now` GPUs."""
    sharded = sum(plan.memory.get(name, 0.0) for name in ("weights", "gradients", "optimiser", "reference"))
    return plan.peak - sharded + sharded * now / gpus


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
        plan.gpu_hours = (decode + prefill) / 3600
        plan.hours = plan.gpu_hours
    if judge.judge_base_url:
        plan.rollouts, rollouts = size.studies, plan.rollouts
        _judge(plan, size, judge, target)
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
            first = path.parent / "sft.yaml"
            model = find(parse(first), "ModelConfig").model_name_or_path if first.is_file() else ""
            plans.append(plan_evaluation(path, target, _architecture(model, path)))
        else:
            plans.append(plan_training(path, target))
    return plans


# ---- output -----------------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """1234567 as `1.23 M`."""
    for factor, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, " k")):
        if value >= factor:
            return f"{value / (1e3 if unit == ' k' else factor):.3g}{unit}"
    return f"{value:,.0f}"


def hours(value: float) -> str:
    """Hours for people: `40 min`, `12 h`, `5.1 days`."""
    if value < 1:
        return f"{value * 60:.0f} min"
    return f"{value:.1f} h" if value < 48 else f"{value / 24:.1f} days"


def table(plans: Sequence[StagePlan], target: Target) -> str:
    """The plans for a screen."""
    where = f"{target.gpus} × {target.kind_name} ({format_bytes(target.kind.memory)}), {target.parallel}"
    lines = [f"on {where}" if target.gpus else "on CPU"]
    for plan in plans:
        lines += ["", f"{plan.stage}: {plan.studies:,} studies"]
        if plan.steps:
            lines.append(
                f"  work     {plan.steps:,} steps"
                + (f", {plan.rollouts:,} rollouts" if plan.rollouts else "")
                + f", {number(plan.tokens_trained)} tokens trained"
                + (f", {number(plan.tokens_generated)} generated" if plan.tokens_generated else "")
            )
        elif plan.tokens_generated:
            lines.append(f"  work     {number(plan.tokens_generated)} tokens generated, one model")
        if plan.memory:
            parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in plan.memory.items() if size >= 2**20)
            verdict = "" if not target.gpus else (" fits" if plan.fits else " DOES NOT FIT")
            lines.append(f"  memory   {format_bytes(plan.peak)}{' a GPU' if target.gpus else ''}{verdict}")
            lines.append(f"           training: {parts}")
            if plan.generating:
                parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in plan.generating.items())
                lines.append(f"           generating: {parts}")
        if plan.gpu_hours:
            lines.append(
                f"  time     {hours(plan.hours)} ({plan.gpu_hours:,.{0 if plan.gpu_hours >= 10 else 1}f} GPU hours, by {plan.hours_by})"
            )
        if len(plan.hours_of) > 1:
            lines.append("           " + ", ".join(f"{part} {hours(each)}" for part, each in plan.hours_of.items()))
        if plan.judge_calls:
            price = f", ${plan.judge_dollars:,.0f}" if plan.judge_dollars is not None else ""
            lines.append(
                f"  judge    {plan.judge}: {plan.judge_calls:,} calls at most (equal pairs are asked once), "
                f"{number(plan.judge_tokens_in)} tokens in, {number(plan.judge_tokens_out)} out{price}"
            )
            if plan.judge_hours:
                lines.append(
                    f"           {hours(plan.judge_hours)} of the time, on {plan.judge_gpus} GPU(s) of its own beside the "
                    f"{target.gpus} that train (JUDGE_GPUS=), prefix caching"
                )
            elif target.gpus and not plan.judge_gpus:
                lines.append("           on no GPU here: the time of its calls is not in the hours")
        if plan.checkpoint_bytes:
            more = f"; {format_bytes(plan.momentary_bytes)} more while one is written" if plan.momentary_bytes else ""
            lines.append(
                f"  disk     {format_bytes(plan.checkpoint_bytes)}: {plan.checkpoints} checkpoint(s) and the final model{more}"
            )
        lines += [f"  note     {line}" for line in plan.notes]
        lines += [f"  change   {line}" for line in plan.advice]
    datasets = list(dict.fromkeys(name for plan in plans for name in plan.datasets))
    downloads = {name: size for plan in plans for name, size in plan.downloads.items()}
    parts = {f"images of {', '.join(datasets)}, at most": image_bytes(datasets, target.data_dir, target.assume)}
    parts |= {f"{name}, downloaded": size for name, size in downloads.items()}
    parts["checkpoints of all stages"] = sum(plan.checkpoint_bytes for plan in plans)
    lines += ["", f"disk in all: {format_bytes(sum(parts.values()))}"]
    lines += [f"  {format_bytes(size)}: {name}" for name, size in parts.items() if size]
    lines += ["", "assumed (--assume name=value changes one):"]
    lines.append("  " + ", ".join(f"{name} {value:g}" for name, value in asdict(target.assume).items()))
    lines.append("  studies and lengths are counted where a data set is prepared, else published counts")
    return "\n".join(lines)


def read_assumptions(pairs: Sequence[str]) -> Assumptions:
    """`name=value` pairs over the defaults.

    Raises:
        RecipeError: an unknown name, or a value that is no number above 0.
    """
    defaults = asdict(Assumptions())
    given: dict[str, Any] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        if name not in defaults:
            raise RecipeError(f"--assume {pair}: no such assumption; there are {', '.join(defaults)}")
        try:
            value = float(text)
        except ValueError:
            raise RecipeError(f"--assume {pair}: {text!r} is no number") from None
        if not 0 < value < math.inf:
            raise RecipeError(f"--assume {pair}: it must be above 0")
        given[name] = type(defaults[name])(value)
    return Assumptions(**given)


def main() -> None:
    parser = machine.OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m launch.plan"
    )
    parser.add_argument("--recipe", default="unirg_cxr", help="folder under recipes/")
    parser.add_argument("--stage", nargs="+", default=[], help="some of its YAML files only, e.g. sft rl_step1")
    parser.add_argument("--gpus", type=int, help="GPUs of each node that train; 0 is a CPU. Default: those here, or 8")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument(
        "--judge_gpus", type=int, help="GPUs of the judge alone; default: 1 for a judge on this machine"
    )
    parser.add_argument("--server_gpus", type=int, help="GPUs of the vLLM server, with vllm_mode: server; default: 1")
    parser.add_argument("--gpu", choices=GPUS, default="h100", help="which GPU")
    parser.add_argument("--parallel", choices=PARALLEL, help="default: zero3 for several GPUs")
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--assume", nargs="+", default=[], metavar="NAME=VALUE", help="change assumptions")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given, overrides = parser.parse_known_args()
    for name, least in (("gpus", 0), ("nodes", 1), ("judge_gpus", 0), ("server_gpus", 1)):
        if getattr(given, name) is not None and getattr(given, name) < least:
            raise RecipeError(f"--{name} {getattr(given, name)}: it must be at least {least}")
    gpus = given.nodes * (given.gpus if given.gpus is not None else default_gpus(given.recipe))
    parallel = given.parallel or ("zero3" if gpus > 1 else "single")
    target = Target(
        gpus,
        given.gpu,
        parallel,
        given.data_dir,
        read_assumptions(given.assume),
        tuple(overrides),
        given.judge_gpus,
        given.server_gpus,
    )
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # of keys' coming names
    plans = plan_recipe(given.recipe, target, given.stage)
    if given.json:
        content = {"gpus": gpus, "gpu": given.gpu, "parallel": parallel, "assumptions": asdict(target.assume)}
        print(json.dumps(content | {"stages": [asdict(plan) for plan in plans]}, indent=1))
    else:
        print(table(plans, target))
    if not all(plan.fits for plan in plans):
        sys.exit(1)


def default_gpus(recipe: str) -> int:
    """0 for the demo; else those of this machine, or eight where it has none."""
    return 0 if recipe == "demo" else len(machine.gpus()) or 8


if __name__ == "__main__":
    run_command(main, machine.MachineError)
