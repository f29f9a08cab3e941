"""How many copies of a judge GPUs hold. Light: it is read before a judge is started beside training (launch/judged.py)."""

from __future__ import annotations

from launch.judges import JudgeKind, judge_kind
from launch.planning.assumed import Assumptions
from model.memory import serving_memory

# Of each GPU that also trains: the judge waits while the policy trains and the other way round, and both keep their memory.
SHARE_BESIDE = 0.15


def kind_of_judge(name: str, assume: Assumptions) -> JudgeKind:
    """The judge's sizes: as launch.judges lists them, else a dense model of the assumed ones."""
    known = judge_kind(name)
    return known or JudgeKind(assume.judge_parameters, assume.judge_parameters, assume.judge_cache_bytes)


def copies(kind: JudgeKind, gpus: int, memory: float) -> tuple[int, int]:
    """GPUs that one copy of a judge takes where it has `memory` bytes of each, and how many copies `gpus` hold."""
    least = next(
        n for n in (2**power for power in range(20)) if serving_memory(kind.parameters, memory, n)["cache"] > 0
    )
    return least, gpus // least
