"""The base model: what a film costs in tokens, the two-image prompt, and greedy reports by either engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from PIL import Image

from foundation.errors import RecipeError
from launch.planning.assumed import read_assumptions
from launch.planning.studies import image_pixels
from launch.verifying.gpu_memory import free_gpu
from launch.verifying.line import Line, Subject, skipped
from model.architectures import architecture
from model.engines import GenerationSettings, gpu_count, load_engine, open_images, prompt_text
from model.processor import load_processor
from model.prompts import is_longitudinal

STUDIES, TOKENS = 4, 64
SAME_START = 5  # words, of most of the reports: later ones may part where two words are as likely; our choice


def check_base_model(subject: Subject) -> Iterator[Line]:
    """Image tokens, prompts and greedy text of the base model."""
    processor = load_processor(subject.model)
    arch = architecture(subject.model)
    if arch is None:
        raise RecipeError(f"{subject.model} is no folder of a Qwen3-VL; fetch it with: make weights")
    pixels = image_pixels(arch, read_assumptions([]))
    expected = arch.image_tokens(pixels)
    found = _image_tokens(processor, Image.new("L", (pixels, pixels), 128).convert("RGB"))
    yield Line(f"image tokens of a film of {pixels} pixels", f"{expected:g}", str(found), found == expected)
    studies = _studies(subject)
    yield _two_images(processor, studies)
    yield from _greedy(subject, studies)


def _image_tokens(processor: Any, *images: Image.Image) -> int:
    text = processor.image_token * len(images)
    ids = processor(text=[text], images=list(images), return_tensors="pt")["input_ids"][0].tolist()
    return ids.count(processor.image_token_id)


def _studies(subject: Subject) -> list[dict[str, Any]]:
    """Studies beside the reports, those with a prior first."""
    from data_prep.prepared import load_studies

    folder = subject.reports.parent
    studies = load_studies([folder.name], folder.parent, subject.reports.stem)
    return sorted(studies, key=lambda study: not is_longitudinal(study, True))[:STUDIES]


def _two_images(processor: Any, studies: list[dict[str, Any]]) -> Line:
    check = "prompt with current and prior film"
    settings = GenerationSettings()
    study = studies[0]
    if not is_longitudinal(study, True):
        return skipped(check, "both films' tokens", "no study here has a prior")
    images = open_images(study, settings)
    expected = sum(_image_tokens(processor, image) for image in images)
    inputs = processor(text=[prompt_text(processor, study, settings)], images=images, return_tensors="pt")
    found = inputs["input_ids"][0].tolist().count(processor.image_token_id)
    well = found == expected and len(images) == len(inputs["image_grid_thw"]) == 2
    total = inputs["input_ids"].shape[1]
    return Line(check, f"2 films, {expected} image tokens", f"{len(images)} films, {found} of {total} tokens", well)


def _greedy(subject: Subject, studies: list[dict[str, Any]]) -> Iterator[Line]:
    ours, seconds = _reports(subject, studies, "transformers")
    found = f"{sum(map(bool, ours))} in {seconds:.1f} s with loading, e.g. {ours[0][:160]!r}"
    yield Line("greedy reports by transformers", f"{len(studies)} with text", found, all(ours))
    check, expected = "greedy reports by vLLM", f"the first {SAME_START} words of transformers' in most studies"
    if find_spec("vllm") is None or not gpu_count():
        yield skipped(check, expected, "vLLM is not installed" if gpu_count() else "no GPU here")
        return
    free_gpu()
    theirs, seconds = _reports(subject, studies, "vllm")
    same = sum(a.split()[:SAME_START] == b.split()[:SAME_START] for a, b in zip(ours, theirs, strict=True))
    found = f"{same} of {len(studies)} in {seconds:.1f} s with loading, e.g. {theirs[0][:160]!r}"
    yield Line(check, expected, found, 2 * same > len(studies))


def _reports(subject: Subject, studies: list[dict[str, Any]], engine: str) -> tuple[list[str], float]:
    start = time.perf_counter()
    settings = GenerationSettings(engine=engine, max_new_tokens=TOKENS)
    reports = [report for report, _ in load_engine(subject.model, settings)(settings)(studies)]
    return reports, time.perf_counter() - start
