"""What a plan rests on: kinds of GPU, published sizes of the data sets, and what is assumed until it is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from foundation.errors import RecipeError

MIB = 2**20


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
    report_spread: float = 0.49  # standard deviation of reports' lengths over their mean (2,357 of IU X-ray: 0.49)
    rollout_spread: float = 0.15  # the same over the rollouts of one study
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
    judge_parameters: float = 32.8e9  # of a judge that launch.judges does not list
    metric_weights_bytes: int = 3_500_000_000  # CheXbert, RadGraph, distilroberta and RaTEScore, downloaded
    judge_cache_bytes: int = 262_144  # of KV cache a token, of such a judge


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
    judge_model: str | None = None  # None: the YAML's

    @property
    def kind(self) -> GpuKind:
        kind = GPUS[self.kind_name]
        return kind if self.memory is None else replace(kind, memory=self.memory)


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
