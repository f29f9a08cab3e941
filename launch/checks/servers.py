"""Does the judge answer, and the hub, and the server that generates?"""

from __future__ import annotations

import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator

from foundation import machine
from foundation.machine import MachineError
from launch.checks.gpus import _gpus
from launch.checks.question import Check, Question
from launch.processes import generation_url, judge_place


def check_judge(question: Question) -> Iterator[Check]:
    """The judge answers a listing of its models: one call, no report in it."""
    for stage in question.asked(("rl_step2", "eval")):
        values = question.recipes.get(stage, {})
        url = values.get("judge_base_url")
        if not url:
            continue
        if url == "offline":
            yield Check(
                f"judge of {stage}", "ok", "offline: the rule-based stand-in, started by the stage", "", (stage,)
            )
            continue
        try:
            import asyncio

            from foundation.governance import JudgeError
            from rewards.chexprompt.judge import Judge
            from rewards.chexprompt.settings import JudgeSettings

            settings = JudgeSettings.from_mapping(dict(values) | {"judge_cache_dir": None, "judge_max_retries": 0})
            with Judge.from_settings(settings) as judge:
                asyncio.run(judge.check())
        except ImportError as error:
            yield Check(f"judge of {stage}", "missing", f"not asked: {error}", "make setup", (stage,))
        except JudgeError as error:
            mend = f"make judge-server JUDGE_MODEL={values.get('judge_model')}, or JUDGE_URL=…"
            if stage == "rl_step2" and (count := len(_gpus())) and values.get("use_cpu") is not True:
                mend = judge_place(values, min(question.gpus or count, count))
            yield Check(f"judge of {stage}", "missing", str(error), mend, (stage,))
        else:
            yield Check(f"judge of {stage}", "ok", f"{values.get('judge_model')} at {url}", "", (stage,))


def check_hub(question: Question) -> Iterator[Check]:
    """Access to the hub, which only `make weights` needs."""
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if not question.network or os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        yield Check("hub", "ok", "not asked (offline mode)")
        return
    try:
        request = urllib.request.Request(f"{endpoint}/api/models?limit=1", headers={"User-Agent": "unirg-recipes"})
        urllib.request.urlopen(request, timeout=5).close()
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        mend = "make weights MIRROR=https://… or copy a weights folder here (WEIGHTS_DIR=)"
        yield Check("hub", "warning", f"{endpoint} does not answer ({reason}); make weights needs it", mend)
    else:
        yield Check("hub", "ok", f"{endpoint} answers")


def check_generation_server(question: Question) -> Iterator[Check]:
    """The vLLM server that the YAML wants rollouts from lists its models."""
    for stage in question.stages_where("vllm_mode", "server"):
        url = generation_url(question.recipes[stage])
        if url is None:
            continue
        try:
            models = machine.served_models(f"{url}/v1")
        except MachineError as error:
            yield Check("generation server", "missing", str(error), "make vllm-server", (stage,))
        else:
            yield Check("generation server", "ok", f"{url}: {', '.join(models or ['wants a key'])}", "", (stage,))
