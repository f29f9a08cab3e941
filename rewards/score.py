"""`python -m rewards score`: metrics of a file of report pairs.

    python -m rewards score --pairs PAIRS.jsonl --metrics bleu2,radgraph --out SCORES.jsonl

A row in has `id`, `reference` and `candidate`. A row out has `id` and one key a metric, its full name. A summary with
means, backends and fingerprints goes beside it, to SCORES.summary.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rewards.conditions import Labeler
from rewards.label_f1 import label_f1
from rewards.metric import Metric, MetricError
from rewards.registry import BACKENDS, EXACT, METRICS, load_labeler, load_metrics

PAIRS_AT_ONCE = 2048
_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell it; no tokenizer and no file can take it
DEFAULT_METRICS = ("bleu2", "bertscore", "sembscore", "radgraph", "radcliq_v1")


@dataclass(frozen=True)
class Pair:
    id: str | int
    candidate: str
    reference: str


def read_pairs(path: Path) -> list[Pair]:
    """The rows of a JSONL file with `id`, `candidate` and `reference`; an empty text is a text, a blank line nothing.

    Raises:
        MetricError: the file cannot be read or is empty, or a row is bad; the message names its line.
    """
    pairs: list[Pair] = []
    seen: dict[str | int, int] = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise MetricError(f"{path} cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise MetricError(f"{where}: not UTF-8") from error
        except (ValueError, RecursionError) as error:  # also a number of thousands of digits, or brackets without end
            raise MetricError(f"{where}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise MetricError(f"{where}: not a JSON object; a row has id, candidate and reference")
        identifier = row.get("id")
        if not isinstance(identifier, str | int) or isinstance(identifier, bool) or identifier == "":
            raise MetricError(f"{where}: no id")
        for key in ("candidate", "reference"):
            if not isinstance(row.get(key), str):
                raise MetricError(f"{where} (id {identifier!r}): {key} is missing or no text")
        for key, text in (("id", str(identifier)), *((key, row[key]) for key in ("candidate", "reference"))):
            if _SURROGATE.search(text):
                raise MetricError(f"{where} (id {identifier!a}): {key} has half a character (a lone surrogate)")
        if identifier in seen:
            raise MetricError(f"{where}: id {identifier!r} is also on line {seen[identifier]}")
        seen[identifier] = number
        pairs.append(Pair(identifier, row["candidate"], row["reference"]))
    if not pairs:
        raise MetricError(f"{path} has no rows; a row is a JSON object with id, candidate and reference")
    return pairs


def score_pairs(pairs: Sequence[Pair], metrics: Mapping[str, Metric]) -> dict[str, np.ndarray]:
    """Scores of all pairs: float32 [n] for each metric under its full name. Memory does not grow with the metrics' work."""
    scores = {metric.name: np.empty(len(pairs), dtype=np.float32) for metric in metrics.values()}
    with tqdm(total=len(pairs), desc="score", unit="pair", disable=None) as progress:
        for start in range(0, len(pairs), PAIRS_AT_ONCE):
            part = pairs[start : start + PAIRS_AT_ONCE]
            candidates, references = [pair.candidate for pair in part], [pair.reference for pair in part]
            for metric in metrics.values():
                scores[metric.name][start : start + len(part)] = metric(candidates, references)
            progress.update(len(part))
    return scores


def summarise(scores: Mapping[str, np.ndarray], metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """Mean, 95% interval of the mean (normal approximation) and origin of each metric; RadCliQ also as 1/mean."""
    rows: dict[str, Any] = {}
    for metric in metrics.values():
        values = scores[metric.name].astype(np.float64)
        mean = float(values.mean())
        half = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else None
        rows[metric.name] = {
            "mean": mean,
            "low": None if half is None else mean - half,
            "high": None if half is None else mean + half,
            "higher_is_better": metric.higher_is_better,
            "backend": metric.backend,
            "fingerprint": metric.fingerprint,
        }
        if metric.name.startswith("radcliq"):
            rows[metric.name]["inverse_of_mean"] = 1 / mean if mean else None
    packages = {name: version(name) for name in ("torch", "transformers", "numpy") if find_spec(name) is not None}
    return {"n": len(next(iter(scores.values()))), "metrics": rows, "versions": packages}


def label_summary(pairs: Sequence[Pair], labeler: Labeler) -> dict[str, Any]:
    """CheXbert label F1 of the candidates against the references, by both maps of `binary_labels`."""
    parts = [pairs[start : start + PAIRS_AT_ONCE] for start in range(0, len(pairs), PAIRS_AT_ONCE)]
    have = np.concatenate([labeler.label([pair.candidate for pair in part]) for part in parts])
    want = np.concatenate([labeler.label([pair.reference for pair in part]) for part in parts])
    return {
        "labeler": labeler.name,
        "fingerprint": labeler.fingerprint,
        "uncertain_is_positive": label_f1(have, want),
        "positive_only": label_f1(have, want, uncertain_is_positive=False),
    }


def write_atomically(path: Path, text: str) -> None:
    """Write under a temporary name, then rename: there is the whole file, or none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", type=Path, required=True, help="JSONL with id, candidate and reference")
    parser.add_argument("--out", type=Path, required=True, help="JSONL of scores to write; the summary goes beside it")
    parser.add_argument(
        "--metrics",
        default=",".join(DEFAULT_METRICS),
        help=f"comma-separated, of {', '.join(METRICS)} (default %(default)s)",
    )
    parser.add_argument("--backend", choices=BACKENDS, default="real", help="real weights, or rule-based stand-ins")
    parser.add_argument(
        "--weights", type=Path, default=Path("weights"), help="folder of make weights (default weights)"
    )
    parser.add_argument("--labels", action="store_true", help="also F1 of CheXbert labels, in the summary")
    parser.add_argument("--radgraph-model", default="radgraph", help="radgraph (published numbers) or radgraph-xl")
    parser.add_argument("--cache", type=Path, help="folder to keep the models' results in: an interrupted run resumes")
    parser.add_argument(
        "--cache-megabytes",
        type=int,
        default=4096,
        help="bound of --cache; past it the oldest go (default %(default)s)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 … (default: a GPU where there is one)")
    parser.add_argument("--tokens-per-batch", type=int, help="token budget of a forward pass (default by device)")
    parser.add_argument(
        "--dtype", default="float32", help="float32 (published numbers), bfloat16 (faster), float16 (a GPU)"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile the encoders, for a GPU")


def run(arguments: argparse.Namespace) -> None:
    """Score the file and write both results.

    Raises:
        MetricError: anything that the user can mend.
    """
    summary_path = arguments.out.with_suffix(".summary.json")
    for path in (arguments.out, summary_path):
        if path.is_dir() or path.resolve() == arguments.pairs.resolve():
            raise MetricError(f"--out {arguments.out} would write {path}, which must be another file than the pairs")
    names = [name for name in dict.fromkeys(arguments.metrics.replace(",", " ").split())]
    if not names:
        raise MetricError(f"--metrics names none; known: {', '.join(METRICS)}")
    pairs = read_pairs(arguments.pairs)
    settings = None
    if arguments.backend == "real" and (set(names) - set(EXACT) or arguments.labels):
        from transformers.utils.logging import disable_progress_bar

        from rewards.engine import EngineSettings

        disable_progress_bar()
        try:
            settings = EngineSettings(
                device=arguments.device,
                tokens_per_batch=arguments.tokens_per_batch,
                dtype=arguments.dtype,
                compile=arguments.compile,
                cache_dir=arguments.cache,
                cache_disk_megabytes=arguments.cache_megabytes,
            )
        except (ValueError, RuntimeError) as error:
            raise MetricError(str(error).splitlines()[0]) from error
    metrics = load_metrics(names, arguments.backend, arguments.weights, settings, arguments.radgraph_model)
    scores = score_pairs(pairs, metrics)
    summary = summarise(scores, metrics)
    if arguments.labels:
        semantic = metrics.get("sembscore")
        labeler = getattr(semantic, "labeler", None) or load_labeler(arguments.backend, arguments.weights, settings)
        summary["labels"] = label_summary(pairs, labeler)
    rows = (
        {"id": pair.id} | {name: float(f"{values[i]:.7g}") for name, values in scores.items()}
        for i, pair in enumerate(pairs)
    )
    try:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(arguments.out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        write_atomically(summary_path, json.dumps(summary, indent=2) + "\n")
    except OSError as error:
        raise MetricError(f"{arguments.out} cannot be written: {error.strerror}") from error
    for name, row in summary["metrics"].items():
        interval = "" if row["low"] is None else f"  [{row['low']:.4f}, {row['high']:.4f}]"
        print(f"{name:40} {row['mean']:8.4f}{interval}")
    print(f"{len(pairs)} pairs: {arguments.out}, {summary_path}")
