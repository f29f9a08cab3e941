"""How long prompts and reports are, in tokens, before a model is loaded; what does not fit is left out and counted.

A report that is cut teaches to stop early, and one prompt beyond vLLM's limit ends a run hours in. Nothing is cut here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import PIL.Image
from transformers import Qwen3VLProcessor
from trl import GRPOConfig, SFTConfig

from data_prep.prepared import Studies, check_images
from foundation.errors import RecipeError, read_json
from foundation.files import write_json
from model.prompts import build_prompt, prompt_images, study_report

_BATCH = 1024  # texts that are tokenised at once
_END = 2  # tokens that end a report in the chat template: <|im_end|> and a line break


def count_tokens(
    studies: Studies, processor: Qwen3VLProcessor, longitudinal: bool, context: bool
) -> list[tuple[int, int]]:
    """Tokens of each study's prompt, its images' included, and of its report with its end."""
    counted = []
    for start in range(0, len(studies), _BATCH):
        batch = studies[start : start + _BATCH]
        prompts = [
            processor.apply_chat_template(
                build_prompt(study, longitudinal, context), tokenize=False, add_generation_prompt=True
            )
            for study in batch
        ]
        prompt_ids = processor.tokenizer(prompts)["input_ids"]
        report_ids = processor.tokenizer([study_report(study) for study in batch])["input_ids"]
        for study, prompt, report in zip(batch, prompt_ids, report_ids, strict=True):
            images = [
                _image_tokens(Path(study["folder"]) / image, processor) for image in prompt_images(study, longitudinal)
            ]
            counted.append((len(prompt) + sum(images) - len(images), len(report) + _END))
    return counted


def _image_tokens(path: Path, processor: Qwen3VLProcessor) -> int:
    with PIL.Image.open(path) as image:  # its header alone
        patches = processor.image_processor.get_number_of_image_patches(image.height, image.width, {})
    return patches // processor.image_processor.merge_size**2


def counted_once(
    studies: Studies,
    processor: Qwen3VLProcessor,
    longitudinal: bool,
    context: bool,
    data_sha256: str,
    folder: Path,
) -> list[tuple[int, int]]:
    """`count_tokens`, kept in `folder` for the run's other stages on the same data."""
    vocabulary = hashlib.sha256(json.dumps(sorted(processor.tokenizer.get_vocab().items())).encode()).hexdigest()
    settings = [
        data_sha256,
        vocabulary,
        processor.chat_template,
        processor.image_processor.to_json_string(),
        longitudinal,
        context,
    ]
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    path = folder / f"{key}.json"
    known = read_json(path) if path.is_file() else {}
    columns = [studies.table.column(name).to_pylist() for name in ("folder", "study_id")]
    names = [f"{folder_}/{study_id}" for folder_, study_id in zip(*columns, strict=True)]
    # A mixture may take a data set twice, or a part of it.
    new = {name: row for row, name in enumerate(names) if name not in known}
    if new:
        check_images(studies, longitudinal)
        counted = count_tokens(Studies(studies.table.take(list(new.values()))), processor, longitudinal, context)
        known |= dict(zip(new, counted, strict=True))
        write_json(path, known)
    return [tuple(known[name]) for name in names]


def length_limit(training: SFTConfig | GRPOConfig) -> tuple[int | None, str]:
    """Tokens of prompt and report together that a stage has room for, and the key that says so."""
    if isinstance(training, SFTConfig):
        return training.max_length, "max_length"
    return (training.vllm_max_model_length if training.use_vllm else None), "vllm_max_model_length"


def fitting(
    study_ids: Sequence[str], lengths: Sequence[tuple[int, int]], training: SFTConfig | GRPOConfig
) -> tuple[list[int], str]:
    """Row numbers of the studies that fit, and one line on the longest and on those left out.

    In RL a report may be as long as max_completion_length.

    Raises:
        RecipeError: none fits.
    """
    limit, key = length_limit(training)
    totals = [
        prompt + (training.max_completion_length if isinstance(training, GRPOConfig) else report)
        for prompt, report in lengths
    ]
    longest = max(range(len(totals)), key=totals.__getitem__)
    line = f"the longest of {len(totals):,} studies is {study_ids[longest]} with {totals[longest]:,} tokens"
    if limit is None:
        return list(range(len(totals))), line
    rows = [row for row, total in enumerate(totals) if total <= limit]
    if not rows:
        raise RecipeError(
            f"{key} is {limit}, and the shortest of {len(totals):,} studies has {min(totals):,} tokens of prompt and report; "
            f"raise {key}"
        )
    left_out = len(totals) - len(rows)
    return rows, f"{line}; {key} is {limit:,}: {left_out:,} left out" if left_out else f"{line} ({key} is {limit:,})"
