"""What turns a study into a report: greedy generation with transformers or with vLLM (paper, Inference: temperature 0)."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from data_prep.images import ImageError, encode_film, read_image_file, scaled_film
from foundation.errors import EvaluationError, read_record
from model.prompts import build_prompt, prompt_images

ENGINES = ("auto", "transformers", "vllm")
VLLM_BATCHES = 16  # vLLM makes its own batches, and wants many requests to make them of: it gets so many at once

# Two images of 512 pixels, context, prior report and report are under 3,000 tokens. Qwen3-VL's own limit of 262,144
# would reserve 38 GB of cache for one request of the 8 B model.
MAX_MODEL_LENGTH = 16_384
# What a model may be asked for: the sections that the reference has, or always the same.
TEMPLATE_OF = {"available": None, "findings_impression": ("findings", "impression"), "findings": ("findings",)}
SECTIONS = tuple(TEMPLATE_OF)

# Takes studies, returns their (report, was it cut at max_new_tokens). `on_text`, for one study: is given the report's pieces as
# they are written (transformers; vLLM's offline engine has them at the end).
Writer = Callable[..., list[tuple[str, bool]]]
# A loaded model: the writer of given settings (of the same engine and dtype).
Engine = Callable[["GenerationSettings"], Writer]


@dataclass(frozen=True)
class GenerationSettings:
    """What decides a generated report, beside the model and the data.

    Attributes:
        sections: which template: by the reference's sections, both sections, or findings alone.
        longitudinal: show the prior image and report where there are both.
        context: show indication and comparison.
        max_new_tokens: a longer report is cut there, and counted as truncated.
        engine: vllm (a GPU's default) or transformers.
        dtype: of the weights; `auto` is the checkpoint's, with either engine.
    """

    sections: str = "available"
    longitudinal: bool = True
    context: bool = True
    max_new_tokens: int = 512
    engine: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if self.sections not in SECTIONS:
            raise EvaluationError(f"sections is {self.sections!r}; choose one of {', '.join(SECTIONS)}")
        if self.engine not in ENGINES:
            raise EvaluationError(f"engine is {self.engine!r}; choose one of {', '.join(ENGINES)}")
        if self.max_new_tokens < 1:
            raise EvaluationError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")


def engine_here(settings: GenerationSettings) -> GenerationSettings:
    """`auto` as the engine it stands for here: vLLM where a GPU and vLLM are, else transformers."""
    if settings.engine != "auto":
        return settings
    from importlib.util import find_spec

    engine = "vllm" if gpu_count() and find_spec("vllm") else "transformers"
    return replace(settings, engine=engine)


def gpu_count() -> int:
    import torch

    return torch.cuda.device_count()


def load_engine(model: str, settings: GenerationSettings) -> Engine:
    """The engine of `settings.engine` with its model loaded: writers of any settings that differ in neither from it."""
    return (vllm_engine if settings.engine == "vllm" else transformers_engine)(model, settings)


def make_writer(model: str, settings: GenerationSettings) -> Writer:
    """The writer of `settings.engine`, its model loaded."""
    return load_engine(model, settings)(settings)


def transformers_engine(model: str, settings: GenerationSettings) -> Engine:
    """Greedy generation with transformers, on a GPU where there is one."""
    import torch

    from model.loading import load_model_and_processor

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network, processor = load_model_and_processor(model, settings.dtype, device)
    return engine_of(network, processor, device)


def writer_of(network: Any, processor: Any, settings: GenerationSettings, device: Any) -> Writer:
    """The writer of a model that is loaded, with its `generation_config` neutral (`generate_neutrally`)."""
    return engine_of(network, processor, device)(settings)


def engine_of(network: Any, processor: Any, device: Any) -> Engine:
    """Greedy generation with such a model."""
    import torch
    from transformers import TextStreamer

    from model.processor import end_tokens

    end = set(end_tokens(processor))

    class Pieces(TextStreamer):
        """Hands over text as it is decoded; what `on_text` raises ends generation."""

        def __init__(self, on_text: Callable[[str], None]) -> None:
            super().__init__(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
            self.on_finalized_text = lambda text, stream_end=False: on_text(text)

    def write(
        settings: GenerationSettings,
        studies: Sequence[Mapping[str, Any]],
        on_text: Callable[[str], None] | None = None,
    ) -> list[tuple[str, bool]]:
        images = [image for study in studies for image in open_images(study, settings)]
        texts = [prompt_text(processor, study, settings) for study in studies]
        inputs = processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt").to(device)
        with torch.inference_mode():
            streamer = Pieces(on_text) if on_text else None
            tokens = network.generate(
                **inputs, max_new_tokens=settings.max_new_tokens, do_sample=False, streamer=streamer
            )
        completions = tokens[:, inputs["input_ids"].shape[1] :]
        reports = processor.tokenizer.batch_decode(completions, skip_special_tokens=True)
        cut = [not end.intersection(row) for row in completions.tolist()]
        return [(report.strip(), truncated) for report, truncated in zip(reports, cut, strict=True)]

    return lambda settings: partial(write, settings)


def vllm_engine(model: str, settings: GenerationSettings) -> Engine:
    """Greedy generation with vLLM (up to two images a prompt), on a GPU, or on a CPU with vLLM's build for it.

    vLLM takes whole models: an adapter is merged for as long as the writer is in use.
    """
    try:
        from vllm import LLM, SamplingParams
    except ImportError as error:
        raise EvaluationError(f"engine vllm needs vLLM ({error}); install it, or set --engine transformers") from error
    from model.adapter import whole_model
    from model.processor import end_tokens, load_processor

    with contextlib.ExitStack() as opened:
        folder = opened.enter_context(whole_model(model))
        processor = load_processor(folder)
        engine = LLM(
            model=folder,
            dtype=checkpoint_dtype(folder) if settings.dtype == "auto" else settings.dtype,
            max_model_len=model_length(folder),
            limit_mm_per_prompt={"image": 2, "video": 0},
            generation_config="vllm",  # its own defaults, and nothing of the checkpoint's generation_config.json
        )
        kept = opened.pop_all()
    ends = end_tokens(processor)

    def write(
        settings: GenerationSettings,
        studies: Sequence[Mapping[str, Any]],
        on_text: Callable[[str], None] | None = None,
    ) -> list[tuple[str, bool]]:
        sampling = SamplingParams(temperature=0.0, max_tokens=settings.max_new_tokens, stop_token_ids=ends)
        requests = [
            {
                "prompt": prompt_text(processor, study, settings),
                "multi_modal_data": {"image": open_images(study, settings)},
            }
            for study in studies
        ]
        outputs = [request.outputs[0] for request in engine.generate(requests, sampling, use_tqdm=False)]
        return [(output.text.strip(), output.finish_reason == "length") for output in outputs]

    weakref.finalize(write, kept.close)  # until then: vLLM may read the processor's files with its first request
    return lambda settings: partial(write, settings)


def checkpoint_dtype(model: str) -> str:
    """The dtype that a checkpoint's weights have. vLLM's own `auto` would turn float32 into bfloat16."""
    config = _config(model)
    dtype = config.get("dtype") or config.get("torch_dtype") or config.get("text_config", {}).get("dtype")
    return dtype or "auto"


def model_length(model: str) -> int:
    """Tokens of prompt and report together that vLLM makes room for."""
    own = _config(model).get("text_config", {}).get("max_position_embeddings", MAX_MODEL_LENGTH)
    return min(own, MAX_MODEL_LENGTH)


def _config(model: str) -> dict[str, Any]:
    """`config.json` of a local checkpoint; empty for a hub name."""
    path = Path(model) / "config.json"
    return read_record(path) if path.is_file() else {}


def prompt_text(processor: Any, study: Mapping[str, Any], settings: GenerationSettings) -> str:
    """The study's prompt in the model's chat format, one placeholder an image; `messages` of its own, where it has them."""
    messages = study.get("messages") or build_prompt(
        study, settings.longitudinal, settings.context, TEMPLATE_OF[settings.sections]
    )
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def open_images(study: Mapping[str, Any], settings: GenerationSettings) -> list[Image.Image]:
    """The study's images in prompt order, as RGB. An image is a path, or the bytes of a prepared film (`ReportWriter`).

    Raises:
        EvaluationError: a missing or unreadable file.
    """
    images = []
    shown = study["message_images"] if "messages" in study else prompt_images(study, settings.longitudinal)
    prepare = study.get("prepare")  # ImageSettings, where the images are as they came and not a prepared folder's
    for image in shown:
        path = "as given" if isinstance(image, bytes) else Path(study["folder"]) / image
        try:
            content = image if isinstance(image, bytes) else read_image_file(path)
            if prepare:
                content = encode_film(scaled_film(content, prepare), prepare)
            with Image.open(BytesIO(content)) as opened:
                images.append(opened.convert("RGB"))
        except (OSError, ImageError, UnidentifiedImageError) as error:
            raise EvaluationError(f"study {study['study_id']}: cannot read image {path}: {error}") from error
    return images


def check_images(studies: Sequence[Mapping[str, Any]], settings: GenerationSettings) -> None:
    """Name a missing image before the model is loaded."""
    for study in studies:
        for name in prompt_images(study, settings.longitudinal):
            if not (Path(study["folder"]) / name).is_file():
                raise EvaluationError(
                    f"study {study['study_id']}: image {Path(study['folder']) / name} is missing; prepare the data again"
                )
