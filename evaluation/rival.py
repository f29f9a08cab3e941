"""Reports of a rival: any vision–language model behind an OpenAI-compatible API, for the studies that ours are tested on.

    python -m evaluation generate --engine server --base-url http://127.0.0.1:8000/v1 --model google/medgemma-4b-it \
        --prompt recipes/rivals/medgemma.yaml --data data/mimic --out outputs/…/eval/mimic/medgemma

Every study ends with a report or in `failed` of generation.json, by cause: a study without an answer is not scored, and never
as an empty report. The same command again asks for what has failed, and for nothing else.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from evaluation.generate import load_finished, read_lines
from evaluation.predictions import rexrank_entry, studies_of_data
from evaluation.report_lines import drop_cut_line, partial_path
from foundation.errors import EvaluationError
from foundation.files import sha256_of, write_json
from foundation.governance import JudgeError, host_of
from foundation.locks import folder_lock
from model.engines import GenerationSettings, check_images
from model.report_server import OURS, PromptFile, ReportServer, own_words, read_prompt

ENGINE = "server"


@dataclass(frozen=True)
class Rival:
    """Whom to ask, and how.

    Attributes:
        model: as the endpoint lists it.
        prompt: `ours` (the paper's), or a YAML file (`model.report_server.PromptFile`).
        options: settings of the judge's names without `judge_`: concurrency, max_retries, budget_dollars, price_input, …
    """

    base_url: str
    model: str
    prompt: str = OURS
    options: Mapping[str, Any] = field(default_factory=dict)


def generate_by_server(
    rival: Rival,
    data: Path,
    split: str,
    out: Path,
    settings: GenerationSettings,
    max_studies: int | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Ask for the reports of a prepared split; returns what generation.json holds.

    Raises:
        EvaluationError: settings that cannot work, films that may not go to that host, a server that cannot be asked, or a
            budget that is reached (what is there is kept); results of other settings in `out`.
    """
    studies = studies_of_data(data, split)[:max_studies]
    prompt = None if rival.prompt == OURS else read_prompt(Path(rival.prompt))
    server = ReportServer.open(rival.base_url, rival.model, rival.options)
    made_by = {
        "model": rival.model,
        "model_sha256": server.fingerprint,
        "host": host_of(rival.base_url, "base_url"),
        "prompt": Path(rival.prompt).name if prompt else OURS,
        "prompt_sha256": prompt.sha256 if prompt else OURS,
        "data": data.name,
        "split": split,
        "data_sha256": sha256_of(data / f"{split}.parquet"),
        "studies": len(studies),
        **asdict(settings),
        "engine": ENGINE,
        "max_new_tokens": server.settings.judge_max_tokens,
        "temperature": server.settings.judge_temperature,
    }
    with folder_lock(out):
        finished = load_finished(out, made_by, force)
        if finished and not finished.get("failed"):
            return finished
        check_images(studies, settings)
        started = time.monotonic()
        partial = partial_path(out)
        if finished and not partial.is_file():
            raise EvaluationError(
                f"{out} has {finished['failed_studies']} failed studies and no {partial.name}; --force asks again"
            )
        drop_cut_line(partial)
        reports = {line["study_id"]: line for line in read_lines(partial) if line.get("model_prediction")}
        todo = [study for study in studies if study["study_id"] not in reports]
        try:
            failed = asyncio.run(_ask_all(server, todo, settings, prompt, partial))
        except JudgeError as error:
            raise EvaluationError(own_words(error)) from error
        reports = {line["study_id"]: line for line in read_lines(partial) if line.get("model_prediction")}
        result = _finish(out, studies, reports, failed, made_by, server, time.monotonic() - started)
    if server.stopped:
        raise EvaluationError(
            f"{own_words(EvaluationError(server.stopped))}; {len(reports)} reports are kept, the same command resumes"
        )
    return result


async def _ask_all(
    server: ReportServer,
    studies: Sequence[Mapping[str, Any]],
    settings: GenerationSettings,
    prompt: PromptFile | None,
    partial: Path,
) -> dict[str, list[str]]:
    """Ask for all studies at once, as many in flight as the settings say; studies that failed, by cause."""
    failed: dict[str, list[str]] = {}
    if not studies:
        return failed
    server.check_sources({study["dataset"] for study in studies})
    await server.check()
    with (
        partial.open("a", encoding="utf-8") as file,
        tqdm(total=len(studies), desc=f"reports of {server.model}", unit="study") as bar,
    ):

        async def ask(study: Mapping[str, Any]) -> None:
            report, cause = await server.report(study, settings, prompt)
            if report is None:
                failed.setdefault(cause or "unknown", []).append(study["study_id"])
            else:
                line = {"study_id": study["study_id"], "model_prediction": report, "truncated": False}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()
            bar.set_postfix_str(str(server.spending), refresh=False)
            bar.update(1)

        try:
            await asyncio.gather(*(ask(study) for study in studies))
        finally:
            await server.aclose()
    return {cause: sorted(ids) for cause, ids in sorted(failed.items())}


def _finish(
    out: Path,
    studies: Sequence[Mapping[str, Any]],
    reports: Mapping[str, Mapping[str, Any]],
    failed: Mapping[str, list[str]],
    made_by: Mapping[str, Any],
    server: ReportServer,
    seconds: float,
) -> dict[str, Any]:
    """Write `predictions.json`, of the studies that have a report, and `generation.json`, which names all others."""
    there = [study for study in studies if study["study_id"] in reports]
    lost = {study["study_id"] for study in studies} - set(reports)
    if lost != {study_id for ids in failed.values() for study_id in ids}:
        raise EvaluationError(
            f"{out}: the studies with a report and those that failed are not all; run the command again"
        )
    entries = {s["study_id"]: rexrank_entry(s, reports[s["study_id"]]["model_prediction"]) for s in there}
    write_json(out / "predictions.json", entries)
    result = {
        "finished": not server.stopped,
        "made_by": dict(made_by),
        "predictions_sha256": sha256_of(out / "predictions.json"),
        "truncated": 0,
        "empty": 0,
        "failed_studies": len(lost),
        "failed": dict(failed),
        "retries": dict(server.retries),
        "spent": {
            "calls": server.spending.calls,
            "tokens": server.spending.prompt_tokens + server.spending.completion_tokens,
            "dollars": server.spending.dollars(),
        },
        "seconds_of_last_run": round(seconds, 1),
    }
    write_json(out / "generation.json", result)
    if not lost:
        partial_path(out).unlink(missing_ok=True)
    for cause, ids in failed.items():
        print(
            f"{len(ids)} of {len(studies)} studies have no report: {cause} ({', '.join(ids[:3])}{', …' if len(ids) > 3 else ''})"
        )
    return result
