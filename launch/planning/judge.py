"""The judge's calls, tokens, price and time."""

from __future__ import annotations

import math
from typing import Any

from foundation.governance import host_of, is_loopback
from launch.judges import ANSWER_TOKENS, BLOCK_TOKENS, FRAME_TOKENS, RUBRIC_TOKENS, JudgeKind
from launch.planning.assumed import Target
from launch.planning.figures import StagePlan
from launch.planning.judge_copies import SHARE_BESIDE, copies, kind_of_judge
from launch.planning.studies import Sizes
from launch.planning.text import hours
from model.memory import serving_memory

JUDGE_MARGIN = 1.5  # of the judge's limits over its planned time
JUDGE_SHARE = 0.92  # of GPUs of its own that the judge's server takes (launch/judge_server.sh)


def add_judge(plan: StagePlan, size: Sizes, settings: Any, target: Target, processes: int = 1) -> None:
    """Calls, tokens, price, and the time on GPUs of this machine, for which training waits: TRL scores a generation before it
    trains on it. Where the plan says of no GPUs of the judge's own, it shares those that train if it fits beside."""
    offline = settings.judge_base_url == "offline"
    plan.judge = "offline-rules-judge (a stand-in)" if offline else settings.judge_model
    asked = settings.judge_answer_format
    plan.judge_calls = plan.rollouts
    plan.judge_tokens_in = plan.judge_calls * (RUBRIC_TOKENS[asked] + FRAME_TOKENS + 2 * size.report)
    plan.judge_tokens_out = plan.judge_calls * ANSWER_TOKENS[asked]
    if settings.judge_price_input is not None and settings.judge_price_output is not None:
        plan.judge_dollars = (
            plan.judge_tokens_in * settings.judge_price_input + plan.judge_tokens_out * settings.judge_price_output
        ) / 1e6
    if not target.gpus or offline:
        return
    kind = kind_of_judge(settings.judge_model or "", target.assume)
    local = is_loopback(host_of(settings.judge_base_url))
    memory = target.kind.memory * JUDGE_SHARE
    plan.judge_gpus = int(local) if target.judge_gpus is None else target.judge_gpus
    if local and target.judge_gpus is None and plan.steps and copies(kind, target.gpus, _beside(target))[1]:
        plan.judge_gpus, plan.judge_share, memory = 0, SHARE_BESIDE, _beside(target)
    if not plan.judge_gpus and not plan.judge_share:
        return
    plan.downloads["judge"] = 2 * kind.parameters
    gpus = plan.judge_gpus or target.gpus
    least, number = copies(kind, gpus, memory)
    if not number:
        plan.fits = False
        plan.advice.append(
            f"one copy of the judge takes {least} GPUs of this kind: JUDGE_GPUS={least}, or a smaller judge"
        )
        return
    plan.judge_copies = (number, least)
    own = _own_tokens(plan, size)
    seconds = judge_seconds(plan, kind, own, settings.judge_concurrency * processes, target, memory)
    plan.judge_cached = 1 - own * plan.judge_calls / plan.judge_tokens_in
    plan.judge_hours = seconds / 3600
    if plan.steps:
        add_judge_limits(plan, settings, seconds / plan.judge_calls, processes)
    if plan.judge_hours > plan.hours:
        plan.advice.append(
            f"the judge is the bottleneck ({hours(plan.judge_hours)} against {hours(plan.hours)} of all else): more GPUs "
            f"for it (JUDGE_GPUS={2 * gpus}), or a smaller one: python -m launch.judges"
        )
    plan.hours += plan.judge_hours
    plan.hours_of["judge"] = plan.judge_hours
    plan.rests_on["judge"] = "assumed"
    plan.gpu_hours = plan.hours * (processes + plan.server_gpus + plan.judge_gpus)


def _beside(target: Target) -> float:
    return target.kind.memory * SHARE_BESIDE


def _own_tokens(plan: StagePlan, size: Sizes) -> float:
    """Tokens of a call that no cache holds: the report, its frame, and its part of the reference, which the first of a study's
    calls computes for the others; a block of the cache is whole or not there."""
    calls_of_a_reference = max(1.0, plan.judge_calls / max(plan.steps and size.studies, 1) if plan.steps else 1.0)
    return size.report * (1 + 1 / calls_of_a_reference) + FRAME_TOKENS + BLOCK_TOKENS / 2


def add_judge_limits(plan: StagePlan, settings: Any, seconds_a_call: float, processes: int) -> None:
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


def judge_seconds(plan: StagePlan, kind: JudgeKind, own: float, in_flight: int, target: Target, memory: float) -> float:
    """Wall seconds of all calls, on `plan.judge_copies` copies with `memory` bytes of each of their GPUs.

    A call's `own` tokens are computed once, by the parameters that each passes; its answer is decoded: each step reads the
    weights that a token of any call takes, and the cache of every call in flight, the rubric's part included.
    """
    assume, gpu = target.assume, target.kind
    number, least = plan.judge_copies
    answer = plan.judge_tokens_out / plan.judge_calls
    prefix = plan.judge_tokens_in / plan.judge_calls - own
    room = least * serving_memory(kind.parameters, memory, least)["cache"]
    held = room / kind.cache_bytes - prefix  # tokens of cache, for calls' own
    together = max(1.0, min(assume.max_concurrent, in_flight / number, held / (own + answer)))
    context = prefix + own + answer / 2
    read = 2 * kind.parameters_read(together) + together * kind.cache_bytes * context
    decode = plan.judge_tokens_out / together * read / (least * gpu.bandwidth * assume.decode_utilisation)
    prefill = 2 * kind.active * own * plan.judge_calls / (least * gpu.flops * assume.prefill_utilisation)
    return (decode + prefill) / number
