"""Write a model's report for every study of a prepared data set: greedy, batched, resumable study by study.

    python -m evaluation generate --model outputs/demo/sft/final --data data/phantom_coast --out outputs/demo/eval/…

Paper, Inference: temperature 0, the key image, indication and comparison as context, the prior image and report where
the study has them. Each finished study is one line of `predictions.partial.jsonl`; the last step writes
`predictions.json` in ReXrank's form and `generation.json` (settings, fingerprints, counts).

Data parallel: one process a GPU (or `--processes` of them), each with its share of the studies and a file of its own.
On several machines, run each part by `--shard i/n`, then the command once without it, which puts them together.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from evaluation.predictions import rexrank_entry, studies_of_data
from evaluation.report_lines import drop_cut_line, is_report, lock_lines, partial_path, partials, read_lines
from foundation import signals
from foundation.errors import EvaluationError, read_record
from foundation.files import sha256_of, write_json
from foundation.locks import folder_lock
from model.engines import (
    VLLM_BATCHES,
    Engine,
    GenerationSettings,
    Writer,
    check_images,
    engine_here,
    gpu_count,
    load_engine,
)

_STOP_SECONDS = 20  # that a process has to end after SIGTERM


@dataclass(frozen=True)
class Task:
    """Whose reports of what are written where.

    Attributes:
        data: a prepared folder.
        batch_size: studies that transformers generates at once; vLLM gets `VLLM_BATCHES` such batches.
        max_studies: only the first so many of the split.
    """

    model: str
    data: Path
    split: str
    out: Path
    settings: GenerationSettings
    batch_size: int = 16
    max_studies: int | None = None


def generate(task: Task, force: bool = False, processes: int | None = None) -> dict[str, Any]:
    """As `generate_all`, for one task."""
    return generate_all([task], force, processes)[0]


def generate_all(tasks: Sequence[Task], force: bool = False, processes: int | None = None) -> list[dict[str, Any]]:
    """Generate for tasks of one model, which is loaded once; returns what each `generation.json` holds.

    Args:
        processes: how many share the studies; None is one a GPU.

    Raises:
        EvaluationError: an unreadable image, or results of other settings in a task's `out` (force replaces them).
        RecipeError, StudyError: no such model or data.
    """
    with contextlib.ExitStack() as locks:
        results: dict[Path, dict[str, Any]] = {}
        todo = []
        for task in tasks:
            studies, settings, made_by = planned(task)
            locks.enter_context(folder_lock(task.out))
            if finished := load_finished(task.out, made_by, force):
                results[task.out] = finished
                continue
            check_images(studies, settings)
            todo.append((replace(task, settings=settings), studies, made_by))
        processes = processes or (max(1, gpu_count()) if todo else 1)
        started = time.monotonic()
        if todo and processes > 1:
            _in_processes([task for task, _, _ in todo], processes)
        engine = _loaded_once()
        for task, studies, made_by in todo:
            if processes == 1:
                started = time.monotonic()
                write_reports(
                    studies,
                    partial_path(task.out),
                    partial(engine, task),
                    _batch_size(task.settings, task.batch_size),
                    partials(task.out),
                )
            results[task.out] = finish(task.out, studies, made_by, time.monotonic() - started)
        return [results[task.out] for task in tasks]


def generate_shard(task: Task, shard: int, shards: int) -> None:
    """As `generate_shards`, for one task."""
    generate_shards([task], shard, shards)


def generate_shards(tasks: Sequence[Task], shard: int, shards: int) -> None:
    """One process's part of the studies: every `shards`-th, from `shard`. A `generate_all` puts the parts together.

    Raises:
        EvaluationError: as `generate_all`; also where the model or the data changed since the other parts.
    """
    engine = _loaded_once()
    for task in tasks:
        studies, settings, made_by = planned(task)
        if load_finished(task.out, made_by, force=False, replace_changed=False):
            continue
        studies = studies[shard::shards]
        check_images(studies, settings)
        write_reports(
            studies,
            partial_path(task.out, shard),
            partial(engine, replace(task, settings=settings)),
            _batch_size(settings, task.batch_size),
            partials(task.out),
            title=f"reports, part {shard + 1} of {shards}",
        )


def _loaded_once() -> Callable[[Task], Writer]:
    """Writers of tasks of one model, which the first that is asked for loads."""
    loaded: list[Engine] = []

    def writer(task: Task) -> Writer:
        if not loaded:
            loaded.append(load_engine(task.model, task.settings))
        return loaded[0](task.settings)

    return writer


def planned(task: Task) -> tuple[list[dict[str, Any]], GenerationSettings, dict[str, Any]]:
    """The studies, the settings with their engine decided, and what decides the reports."""
    from model.check import check_model_folder
    from model.films import check_form, form_of_data
    from model.fingerprint import model_fingerprint

    studies = studies_of_data(task.data, task.split)[: task.max_studies]
    check_model_folder(task.model)
    films = form_of_data(task.data)
    check_form(task.model, films, str(task.data))
    settings = engine_here(task.settings)
    made_by = {
        "model": task.model,
        "model_sha256": model_fingerprint(task.model),
        "data": task.data.name,
        "split": task.split,
        "data_sha256": sha256_of(task.data / f"{task.split}.parquet"),
        "studies": len(studies),
        **({"films": str(films)} if films else {}),
        **asdict(settings),
    }
    return studies, settings, made_by


def _batch_size(settings: GenerationSettings, batch_size: int) -> int:
    return batch_size * VLLM_BATCHES if settings.engine == "vllm" else batch_size


def load_finished(
    out: Path, made_by: Mapping[str, Any], force: bool, replace_changed: bool = True
) -> dict[str, Any] | None:
    """`generation.json` where the work is done; None where there is work left.

    Predictions of a model or of data that have changed since (same names, other contents) are made again; a folder that
    was merely moved is the same model.

    Raises:
        EvaluationError: what lies there was made with other settings; or, without `replace_changed`, of another model or
            other data.
    """
    settings_path = out / "generation.json"
    if settings_path.is_file() and not force:
        before = _read_record(settings_path)
        changed = [key for key, value in made_by.items() if before["made_by"].get(key) != value]
        if "model_sha256" not in changed:
            changed = [key for key in changed if key != "model"]
        if set(changed) - {"model_sha256", "data_sha256", "studies"} or (changed and not replace_changed):
            raise EvaluationError(
                f"{out} holds predictions made with another {', '.join(changed)}; --force replaces them, or choose another --out"
            )
        if changed:
            print(f"{out}: {' and '.join(changed)} changed since these predictions; making them again")
            force = True
    if force:
        for file in [out / "predictions.json", settings_path, *partials(out)]:
            file.unlink(missing_ok=True)
    if settings_path.is_file():
        if before.get("finished"):
            if _is_as_written(out / "predictions.json", before.get("predictions_sha256")):
                print(f"{out}: predictions finished already (--force makes them again)")
                return before
            print(f"{out}: predictions.json is missing or not as it was written; making it again")
            write_json(settings_path, {"finished": False, "made_by": dict(made_by)})
    else:
        write_json(settings_path, {"finished": False, "made_by": dict(made_by)})
    return None


def _read_record(path: Path) -> dict[str, Any]:
    """`generation.json`, with `made_by`.

    Raises:
        EvaluationError: it is damaged.
    """
    record = read_record(path, "made_by")
    if not isinstance(record["made_by"], dict):
        raise EvaluationError(f"{path} does not say how the predictions were made; --force makes them again")
    return record


def _is_as_written(path: Path, sha256: str | None) -> bool:
    """Whether a file is there with this sha256; with none (of before it was noted) whether it is there."""
    return path.is_file() and (sha256 is None or sha256_of(path) == sha256)


def write_reports(
    studies: Sequence[Mapping[str, Any]],
    path: Path,
    load_writer: Callable[[], Writer],
    batch_size: int,
    others: Iterable[Path] = (),
    title: str = "reports",
) -> None:
    """Append a line per study to `path`, in batches of similar prompts; studies that it, or `others`, hold are done.

    Raises:
        EvaluationError: another process is writing to `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        lock_lines(file, path)
        drop_cut_line(path)
        _write_reports(studies, path, file, load_writer, batch_size, others, title)


def _write_reports(
    studies: Sequence[Mapping[str, Any]],
    path: Path,
    file: TextIO,
    load_writer: Callable[[], Writer],
    batch_size: int,
    others: Iterable[Path],
    title: str,
) -> None:
    done = {row["study_id"] for file in {path, *others} for row in read_lines(file) if is_report(row)}
    todo = [study for study in studies if study["study_id"] not in done]
    if not todo:
        return
    writer = load_writer()
    # Alike prompts share a batch: little padding. The order is fixed by the studies alone.
    todo.sort(
        key=lambda s: (bool(s.get("prior_image")), len(s.get("indication") or "") + len(s.get("prior_report") or ""))
    )
    with tqdm(total=len(studies), initial=len(studies) - len(todo), desc=title, unit="study") as bar:
        for start in range(0, len(todo), batch_size):
            batch = todo[start : start + batch_size]
            for study, (report, truncated) in zip(batch, writer(batch), strict=True):
                line = {"study_id": study["study_id"], "model_prediction": report, "truncated": truncated}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            bar.update(len(batch))


def finish(
    out: Path, studies: Sequence[Mapping[str, Any]], made_by: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """Merge the finished lines into `predictions.json`, in the data's order, and record how they were made."""
    for path in partials(out):
        with path.open("a", encoding="utf-8") as file:  # a part that is still being written is not put together
            lock_lines(file, path)
    lines = {row["study_id"]: row for file in partials(out) for row in read_lines(file) if is_report(row)}
    missing = [study["study_id"] for study in studies if study["study_id"] not in lines]
    if missing:
        raise EvaluationError(
            f"{out}: {len(missing)} studies have no report yet (first: {missing[0]}); run the command again"
        )
    write_json(
        out / "predictions.json",
        {s["study_id"]: rexrank_entry(s, lines[s["study_id"]]["model_prediction"]) for s in studies},
    )
    result = {
        "finished": True,
        "made_by": dict(made_by),
        "predictions_sha256": sha256_of(out / "predictions.json"),
        "truncated": sum(lines[s["study_id"]]["truncated"] for s in studies),
        "empty": sum(not lines[s["study_id"]]["model_prediction"].strip() for s in studies),
        "seconds_of_last_run": round(seconds, 1),
    }
    write_json(out / "generation.json", result)
    for file in partials(out):
        file.unlink()
    if result["truncated"]:
        print(f"{result['truncated']} of {len(studies)} reports were cut at {made_by['max_new_tokens']} tokens")
    return result


def write_tasks(tasks: Sequence[Task], path: Path) -> None:
    """Tasks as a JSON file that `read_tasks` reads: what a process of its own is to do."""
    rows = [asdict(task) | {"data": str(task.data), "out": str(task.out)} for task in tasks]
    write_json(path, rows)


def read_tasks(path: Path) -> list[Task]:
    """The tasks of a file that `write_tasks` made."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [
        Task(
            **{
                **row,
                "data": Path(row["data"]),
                "out": Path(row["out"]),
                "settings": GenerationSettings(**row["settings"]),
            }
        )
        for row in rows
    ]


def _in_processes(tasks: Sequence[Task], processes: int) -> None:
    """Each process, with a GPU of its own where there are GPUs, writes its share of the studies.

    Raises:
        EvaluationError: a process failed (its own message is above); what is written is kept.
    """
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    shared = {"OMP_NUM_THREADS": threads, **os.environ}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = gpu_count()
    devices = visible.split(",") if visible else [str(i) for i in range(gpus)]
    if gpus and processes > gpus:
        raise EvaluationError(f"--processes is {processes}, but there are {gpus} GPUs; give each process its own")
    running: list[subprocess.Popen] = []
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(tasks, Path(folder) / "tasks.json")
        command = [sys.executable, "-m", "evaluation.generate", str(Path(folder) / "tasks.json")]
        try:
            for i in range(processes):
                own = {**shared, "CUDA_VISIBLE_DEVICES": devices[i]} if gpus else shared
                running.append(signals.start([*command, f"{i}/{processes}"], env={**own, signals.PART: "1"}))
            failed = [i for i, process in enumerate(running) if process.wait()]
        finally:
            for process in running:
                if process.poll() is None:
                    process.terminate()
            for process in running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_SECONDS)
                process.kill()
    if failed:
        raise EvaluationError(
            f"{len(failed)} of {processes} processes failed (their messages are above); run the command again to resume"
        )


if __name__ == "__main__":  # one process of `_in_processes`: python -m evaluation.generate TASKS.json I/N
    from foundation.errors import run_command

    run_command(lambda: generate_shards(read_tasks(Path(sys.argv[1])), *map(int, sys.argv[2].split("/"))))
