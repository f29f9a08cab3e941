"""The report's study browser: every study with its images, reports, scores and disagreements, as data for the page.

Report texts are untrusted: they reach the page inside JSON in which every `<`, `>` and `&` is escaped, and the page's
script writes them as text.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from evaluation.names import shown_name, shown_number
from evaluation.predictions import inside
from evaluation.run_folder import Run
from foundation.errors import EvaluationError
from rewards.chexprompt.judgement import ERROR_TYPES
from rewards.conditions import CONDITIONS
from settings.evaluations import BASELINES

BROWSER_STUDIES = 3_000
IMAGE_SIZE = 256  # longest side of the browser's images in pixels
_IMAGES_A_CHUNK = 60
GRAPH_LABELS = {"ANAT-DP": "anatomy", "OBS-DP": "present", "OBS-DA": "absent", "OBS-U": "uncertain"}


def browser_content(run: Run, headline: str, data_dir: Path | None, limit: int, seed: int) -> dict[str, Any] | None:
    """The browser's studies as escaped JSON, and its images as JSON chunks of data URIs; None without studies."""
    if limit < 1:
        return None
    described = [run.described(model) for model in run.models]
    metrics = list(dict.fromkeys(n for d in described for n in [*d["metrics"], d["composite"]["name"]] if n))
    every = {(line["dataset"], line["study_id"]) for _, line in scored_lines(run)}
    total, chosen = len(every), sorted(every)
    if total > limit:
        chosen = sorted(chosen[i] for i in np.random.default_rng(seed).choice(total, limit, replace=False))
    studies: dict[tuple[str, str], dict[str, Any]] = {key: {} for key in chosen}
    labels: dict[str, int] = {}  # the graphs' labels, numbered
    for index, line in scored_lines(run):
        key = (line["dataset"], line["study_id"])
        if key in studies:
            studies[key] = studies[key] or _browser_study(line, len(run.models), labels)
            studies[key]["candidates"][index] = _browser_candidate(line, metrics, labels)
    shown = list(studies.values())
    folders = {
        dataset: run.data_folder(dataset, data_dir) for dataset in {s["dataset"] for s in shown} & {*run.datasets}
    }
    images, chunk_of, unreadable = _image_chunks(shown, folders)
    note = f"{len(shown):,} studies."
    if total > limit:
        note = f"A random sample of {limit:,} of {total:,} studies (seed {seed})."
    if unreadable:
        note += f" {unreadable:,} images could not be shown: absent or unreadable (--data_dir says where the data lie)."
    trained = [i for i, model in enumerate(run.models) if model not in BASELINES]
    data = {
        "models": [shown_name(model) for model in run.models],
        "chosenModel": trained[-1] if trained else 0,
        "metrics": [shown_number(name) for name in metrics],
        "graphLabels": [GRAPH_LABELS.get(label, label.replace("::", ", ").lower()) for label in labels],
        "graphName": next((n for n in metrics if n.startswith("radgraph")), None) if labels else None,
        "shownMetric": metrics.index(headline) if headline in metrics else 0,
        "conditions": list(CONDITIONS),
        "errorTypes": list(ERROR_TYPES),
        "imageChunk": chunk_of,
        "studies": shown,
    }
    return {"data": script_json(data), "images": [script_json(chunk) for chunk in images], "note": note}


def script_json(content: Any) -> str:
    """JSON that cannot end or open a tag inside a script element, whatever the texts in it say."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    escapes = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
    return text.translate(str.maketrans(escapes))


def _browser_study(line: Mapping[str, Any], models: int, labels: dict[str, int]) -> dict[str, Any]:
    def image(name: str) -> str | None:
        return f"{line['dataset']}/{line[name]}" if line.get(name) else None

    return {
        "id": line["study_id"],
        "dataset": line["dataset"],
        "encounter": line["encounter"],
        "temporal": line["temporal"],
        "sex": line["sex"],
        "age": line["age"],
        "race": line["race"],
        "indication": line["indication"],
        "comparison": line["comparison"],
        "prior": line["prior_report"],
        "reference": line["reference"],
        "graph": _entities(line, "reference", labels),
        "image": image("image"),
        "priorImage": image("prior_image"),
        # True labels where the data has them: then disagreements are with what the image shows.
        "labels": line["labels"].get("truth") or line["labels"]["reference"],
        "candidates": [None] * models,
    }


def _browser_candidate(line: Mapping[str, Any], metrics: Sequence[str], labels: dict[str, int]) -> dict[str, Any]:
    judge = line.get("judge") or {}
    return {
        "text": line["candidate"],
        "status": line["status"],
        "metrics": [None if name not in line["metrics"] else round(line["metrics"][name], 4) for name in metrics],
        "labels": line["labels"]["candidate"],
        "graph": _entities(line, "candidate", labels),
        "significant": judge.get("significant"),
        "insignificant": judge.get("insignificant"),
    }


def _entities(line: Mapping[str, Any], side: str, labels: dict[str, int]) -> list[list[Any]] | None:
    """The graph's entities as [start, end, label number], with their words where these are not the text's own."""
    graph = (line.get("graph") or {}).get(side)
    if graph is None:
        return None
    text = line[side]
    entities = []
    for start, end, label, words in graph:
        number = labels.setdefault(label, len(labels))
        same = start >= 0 and " ".join(text[start:end].lower().split()) == words
        entities.append([start, end, number] if same else [start, end, number, words])
    return entities


def _image_chunks(
    studies: Sequence[Mapping[str, Any]], folders: Mapping[str, Path | None]
) -> tuple[list[dict[str, str]], dict[str, int], int]:
    """Chunks {key: data URI}, each key's chunk, and how many images could not be read."""
    keys = dict.fromkeys(s[name] for s in studies for name in ("image", "priorImage") if s[name])
    chunks: list[dict[str, str]] = []
    chunk_of: dict[str, int] = {}
    unreadable = 0
    for key in tqdm(keys, desc="images", unit="image"):
        dataset, _, name = key.partition("/")
        folder = folders.get(dataset)
        uri = data_uri(folder, name) if folder else None
        if uri is None:
            unreadable += 1
            continue
        if not chunks or len(chunks[-1]) >= _IMAGES_A_CHUNK:
            chunks.append({})
        chunks[-1][key] = uri
        chunk_of[key] = len(chunks) - 1
    return chunks, chunk_of, unreadable


def data_uri(root: Path, name: str, size: int = IMAGE_SIZE, quality: int = 72) -> str | None:
    """An image inside `root` as a grey JPEG data URI of at most `size` pixels a side; None where it is outside of it, absent
    or unreadable."""
    try:
        with Image.open(inside(root, name)) as image:
            image.draft("L", (size, size))
            grey = image.convert("L")
            grey.thumbnail((size, size))
    except (OSError, EvaluationError, UnidentifiedImageError, Image.DecompressionBombError):
        return None
    buffer = io.BytesIO()
    grey.save(buffer, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def scored_lines(run: Run) -> Iterator[tuple[int, dict[str, Any]]]:
    """All scored studies, each with its model's number."""
    for index, model in enumerate(run.models):
        for folder in run.folders[model].values():
            path = folder / "scores.jsonl"
            try:
                with path.open(encoding="utf-8") as file:
                    for line in file:
                        yield index, json.loads(line)
            except (OSError, ValueError, RecursionError) as error:
                raise EvaluationError(f"{path} is not a scores file ({error}); score again with --force") from error
