"""A plan for a screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from foundation.machine import format_bytes
from launch.planning.assumed import Target
from launch.planning.figures import StagePlan
from launch.planning.studies import image_bytes


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
        lines += [*_work(plan), *_memory(plan, target), *_time(plan), *_judge(plan, target), *_checkpoints(plan)]
        lines += [f"  note     {line}" for line in plan.notes]
        lines += [f"  change   {line}" for line in plan.advice]
    lines += ["", *_disk(plans, target), "", "assumed (--assume name=value changes one):"]
    lines.append("  " + ", ".join(f"{name} {value:g}" for name, value in asdict(target.assume).items()))
    lines.append("  studies and lengths are counted where a data set is prepared, else published counts")
    return "\n".join(lines)


def _work(plan: StagePlan) -> list[str]:
    if plan.steps:
        return [
            f"  work     {plan.steps:,} steps"
            + (f", {plan.rollouts:,} rollouts" if plan.rollouts else "")
            + f", {number(plan.tokens_trained)} tokens trained"
            + (f", {number(plan.tokens_generated)} generated" if plan.tokens_generated else "")
        ]
    return [f"  work     {number(plan.tokens_generated)} tokens generated, one model"] if plan.tokens_generated else []


def _memory(plan: StagePlan, target: Target) -> list[str]:
    if not plan.memory:
        return []
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in plan.memory.items() if size >= 2**20)
    verdict = "" if not target.gpus else (" fits" if plan.fits else " DOES NOT FIT")
    lines = [
        f"  memory   {format_bytes(plan.peak)}{' a GPU' if target.gpus else ''}{verdict}",
        f"           training: {parts}",
    ]
    if plan.generating:
        parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in plan.generating.items())
        lines.append(f"           generating: {parts}")
    return lines


def _time(plan: StagePlan) -> list[str]:
    lines = []
    if plan.gpu_hours:
        gpu_hours = f"{plan.gpu_hours:,.{0 if plan.gpu_hours >= 10 else 1}f}"
        lines.append(f"  time     {hours(plan.hours)} ({gpu_hours} GPU hours, by {plan.hours_by})")
    if plan.hours_of:
        of = (f"{part} {hours(each)} ({plan.rests_on[part]})" for part, each in plan.hours_of.items())
        lines.append("           " + ", ".join(of))
    if plan.waiting * 60 >= 1:
        lines.append(f"           and {hours(plan.waiting)} of waiting for the longest forward pass of all processes")
    return lines


def _judge(plan: StagePlan, target: Target) -> list[str]:
    if not plan.judge_calls:
        return []
    price = f", ${plan.judge_dollars:,.0f}" if plan.judge_dollars is not None else ""
    lines = [
        f"  judge    {plan.judge}: {plan.judge_calls:,} calls at most (equal pairs are asked once), "
        f"{number(plan.judge_tokens_in)} tokens in, {number(plan.judge_tokens_out)} out{price}"
    ]
    if plan.judge_share:
        copies, each = plan.judge_copies
        lines.append(
            f"           {hours(plan.judge_hours)} of the time, beside training on the same GPUs: {copies} × {each} GPUs "
            f"with {plan.judge_share:.0%} of each, {plan.judge_cached:.0%} of the input from its prefix cache"
        )
    elif plan.judge_hours:
        lines.append(
            f"           {hours(plan.judge_hours)} of the time, on {plan.judge_gpus} GPU(s) of its own beside the "
            f"{target.gpus} that train (JUDGE_GPUS=), prefix caching"
        )
    elif target.gpus and not plan.judge_gpus:
        lines.append("           on no GPU here: the time of its calls is not in the hours")
    return lines


def _checkpoints(plan: StagePlan) -> list[str]:
    if not plan.checkpoint_bytes:
        return []
    more = f"; {format_bytes(plan.momentary_bytes)} more while one is written" if plan.momentary_bytes else ""
    size = format_bytes(plan.checkpoint_bytes)
    return [f"  disk     {size}: {plan.checkpoints} checkpoint(s) and the final model{more}"]


def _disk(plans: Sequence[StagePlan], target: Target) -> list[str]:
    datasets = list(dict.fromkeys(name for plan in plans for name in plan.datasets))
    downloads = {name: size for plan in plans for name, size in plan.downloads.items()}
    parts = {f"images of {', '.join(datasets)}, at most": image_bytes(datasets, target.data_dir, target.assume)}
    parts |= {f"{name}, downloaded": size for name, size in downloads.items()}
    parts["checkpoints of all stages"] = sum(plan.checkpoint_bytes for plan in plans)
    whole = f"disk in all: {format_bytes(sum(parts.values()))}"
    return [whole, *[f"  {format_bytes(size)}: {name}" for name, size in parts.items() if size]]
