"""Values that cannot be, of our keys and of TRL's: told in one line before any configuration is built from them.

TRL, transformers and torch take a NaN or a negative where they are configured and end in a stack trace where they use it,
minutes later; YAML gives a list where a number is wanted. Each value is held against its field's type and, where there is
one, against its range here.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from functools import lru_cache
from typing import Any

from data_prep.study import SPLITS
from foundation.errors import RecipeError
from model.engines import ENGINES
from rewards.registry import BACKENDS
from settings.evaluations import BASELINES, REFERENCE_FORMS, SECTIONS

LARGEST = 2**31 - 1  # of a whole number: what TRL's and torch's counters hold


@dataclass(frozen=True)
class Range:
    """From `low` to `high`; open ends leave the bound itself out."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def holds(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below

    def __str__(self) -> str:
        parts = []
        if self.low > -math.inf:
            parts.append(f"{'above' if self.low_open else 'at least'} {self.low:g}")
        if self.high < math.inf:
            parts.append(f"{'below' if self.high_open else 'at most'} {self.high:.10g}")
        return " and ".join(parts)


COUNT, COUNT_OR_NONE = Range(1, LARGEST), Range(0, LARGEST)
POSITIVE, NOT_NEGATIVE = Range(0, low_open=True), Range(0)
SHARE, MOMENTUM = Range(0, 1), Range(0, 1, high_open=True)
RANGES = {
    **dict.fromkeys(
        (
            "global_batch_size",
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "steps_per_generation",
            "updates_per_generation",
            "num_iterations",
            "max_length",
            "max_completion_length",
            "save_total_limit",
            "checkpoint_above_tokens",
            "keep_best",
            "keep_optimizer_states",
            "monitor_patience",
            "vllm_max_model_length",
            "vllm_tensor_parallel_size",
            "batch_size",
            "max_new_tokens",
            "validation_studies",
        ),
        COUNT,
    ),
    **dict.fromkeys(("dataloader_num_workers", "rollouts_logged", "top_k"), COUNT_OR_NONE),
    # What of these does nothing, such as 0 steps, keys.py refuses with its reason.
    "max_steps": Range(-1, LARGEST),
    **dict.fromkeys(("lora_r", "lora_alpha"), Range(0, LARGEST)),
    "num_generations": Range(2, LARGEST),
    **dict.fromkeys(("seed", "data_seed"), Range(0, 2**32 - 1)),  # numpy's
    "learning_rate": NOT_NEGATIVE,
    "num_train_epochs": Range(0, 1e6),
    "warmup_steps": Range(0, LARGEST),
    "warmup_ratio": SHARE,
    **dict.fromkeys(("logging_steps", "save_steps", "eval_steps"), Range(0, LARGEST, low_open=True)),
    **dict.fromkeys(("weight_decay", "max_grad_norm", "beta", "epsilon_high", "delta"), Range(0, 1e12)),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "lora_dropout"), MOMENTUM),
    "adam_epsilon": Range(0, 1, low_open=True),
    "epsilon": Range(0, 1, low_open=True, high_open=True),
    "temperature": Range(0, 100),
    "top_p": Range(0, 1, low_open=True),
    "min_p": SHARE,
    "repetition_penalty": Range(0, 100, low_open=True),
    "vllm_gpu_memory_utilization": Range(0, 1, low_open=True),
    "vllm_server_port": Range(1, 65535),
    "vllm_server_timeout": POSITIVE,
    "dataset_weights": Range(0, 1e4, low_open=True),
    **dict.fromkeys(
        (
            "weight_bleu2",
            "weight_bertscore",
            "weight_sembscore",
            "weight_radgraph",
            "weight_chexprompt",
            "weights_total",
        ),
        Range(-1e3, 1e3),
    ),
    "weight_radcliq_v1": Range(-1e3, 1e3),
    "monitor_min_film_effect": Range(-1, 1),  # a difference of two shares
    **dict.fromkeys(("judge_budget_calls", "judge_budget_tokens"), Range(0, 1e15)),
    **dict.fromkeys(
        (
            "monitor_max_length",
            "monitor_max_length_drift",
            "monitor_min_entropy",
            "monitor_max_kl",
            "monitor_max_heldout_drop",
            "monitor_max_logp_difference",
        ),
        Range(0, 1e9),
    ),
    **dict.fromkeys(
        (
            "monitor_min_unique",
            "monitor_max_truncated",
            "monitor_max_prior_copies",
            "monitor_max_zero_spread",
            "monitor_max_negation_flips",
        ),
        SHARE,
    ),
}
CHOICES: dict[str, Sequence[str]] = {
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "batch_counts": ("prompts", "completions"),
    "reward_backend": BACKENDS,
    "sections": SECTIONS,
    "reference_form": REFERENCE_FORMS["text"],
    "missing_section": REFERENCE_FORMS["missing_section"],
    "engine": ENGINES,
    "baselines": BASELINES,
    **dict.fromkeys(("split", "train_split", "validation_split"), SPLITS),
}
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")
# Texts that may be empty: no judge, no cache, no name.
EMPTY = {"judge_base_url", "judge_model", "score_cache_dir", "run_name", "hub_token", "only_dataset", "revision"}


def check_values(
    given: Mapping[str, Any], kinds: Iterable[type], where: str = "command line", flags: Collection[str] = ()
) -> None:
    """Raise `RecipeError` for the first value of `given` (by key) that its field cannot have.

    Args:
        kinds: the dataclasses that the keys are fields of. A field's own default is taken as it is.
        where: the file that the values are of, for the message.
        flags: what stood on the command line, which overrides the file.
    """
    for kind in kinds:
        hints = _hints(kind)
        for field in fields(kind):
            value = given.get(field.name)
            if field.name not in given or (value == field.default and type(value) is type(field.default)):
                continue
            # TRL has fields that are null although their type does not say so.
            if value is None and field.name not in RANGES and field.name not in CHOICES:
                continue
            if wrong := _wrong(field.name, value, hints[field.name]):
                place = "command line" if f"--{field.name}" in flags else where
                told = "null" if value is None else f"{value!r:.100}"
                raise RecipeError(f"{place}: {field.name} is {told}; it must be {wrong}")


@lru_cache(maxsize=32)
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _wrong(name: str, value: Any, hint: Any) -> str:
    """What `value` must be and is not; empty where it fits."""
    if not _fits(value, hint):
        return _named(hint)
    numbers = [n for n in (value if isinstance(value, list) else [value]) if _is_number(n)]
    for number in numbers:
        if not math.isfinite(number):
            return "a finite number"
        if name in RANGES and not RANGES[name].holds(number):
            return str(RANGES[name])
        if abs(number) > LARGEST and isinstance(number, int) and name not in RANGES:
            return f"at most {LARGEST}"
    texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
    if name in CHOICES and any(text not in CHOICES[name] for text in texts):
        return f"one of {', '.join(CHOICES[name])}"
    if name == "attn_implementation" and value not in ATTENTION and "/" not in value:
        return f"one of {', '.join(ATTENTION)}, or a kernel of the hub"
    if any(not text.strip() for text in texts) and name not in EMPTY:
        return "a text that is not empty" if isinstance(value, str) else "a list without empty texts"
    return ""


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is typing.Literal:
        return value in parts
    if origin is list or hint is list:
        return isinstance(value, list) and all(_fits(item, parts[0]) for item in value if parts)
    if origin is dict or hint is dict:
        return isinstance(value, dict)
    if hint is float:
        return _is_number(value)
    if hint in (int, bool, str):
        return type(value) is hint
    if isinstance(hint, type) and issubclass(hint, Enum):
        return isinstance(value, (hint, str))
    return isinstance(value, hint) if isinstance(hint, type) else True


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _named(hint: Any) -> str:
    """A type in words: `a whole number`, `a list of texts, or null`."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType, typing.Literal):
        return " or ".join(dict.fromkeys(_named(part) for part in parts))
    if origin is list or hint is list:
        return f"a list of {_named(parts[0]).removeprefix('a ')}s" if parts else "a list"
    if origin is dict or hint is dict:
        return "a mapping"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    return names.get(hint, "a text" if isinstance(hint, type) and issubclass(hint, Enum) else str(hint))
