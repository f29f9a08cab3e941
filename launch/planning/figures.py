"""The figures of one stage."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class StagePlan:
    """One stage's figures. Memory in bytes for one GPU: parts while training, parts while vLLM generates beside it.

    Attributes:
        hours: wall time, the judge's included.
        hours_of: of them, each part's.
        rests_on: of each part, whether its rate is `measured` or `assumed`.
        waiting: hours that processes wait for the longest of their forward passes; not in `hours`.
        gpu_hours: of all GPUs that are held for so long: those that train, a vLLM server's, the judge's.
        judge_hours: wall time of the judge's calls on GPUs of this machine; 0 where it has none here.
        judge_gpus: GPUs of the judge's own, beside those that train; 0 where it shares theirs.
        judge_share: of each GPU that trains, the memory that a judge beside has; 0 where it has GPUs of its own.
        judge_copies: copies of the judge, and GPUs of each.
        judge_cached: share of its input that comes from its prefix cache.
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
    rests_on: dict[str, str] = field(default_factory=dict)
    waiting: float = 0
    hours_by: str = "assumed utilisation"
    judge: str = ""
    judge_calls: int = 0
    judge_tokens_in: float = 0
    judge_tokens_out: float = 0
    judge_dollars: float | None = None
    judge_gpus: int = 0
    judge_share: float = 0
    judge_copies: tuple[int, int] = (0, 0)
    judge_cached: float = 0
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
