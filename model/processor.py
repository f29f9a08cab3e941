"""Qwen3-VL's processor, with or without torchvision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    Qwen3VLProcessor,
)

from foundation.errors import RecipeError
from model.check import MODEL_TYPE, check_model_folder


class ImageQwen3VLProcessor(Qwen3VLProcessor):
    """Qwen3-VL's processor for images only.

    transformers' own also builds a video processor, which needs torchvision; chest X-rays are images, so this one loads any
    Qwen3-VL's files with or without torchvision. It tokenises images the same way, and saves what transformers' own loads:
    the name of its class in a checkpoint is `Qwen3VLProcessor`, as on the hub.
    """

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As the parent, under transformers' name, and the settings of a video processor: neither transformers' own processor
        nor vLLM loads a Qwen3-VL without them. `preprocessor_config.json` is where the hub's Qwen3-VL have the image settings."""
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        folder = Path(save_directory)
        for name in ("processor_config.json", "tokenizer_config.json"):
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            write_settings(folder / name, {**content, "processor_class": Qwen3VLProcessor.__name__})
        images = self.image_processor
        shared = ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std")
        settings = {"video_processor_type": "Qwen3VLVideoProcessor", **{name: getattr(images, name) for name in shared}}
        write_settings(folder / "video_preprocessor_config.json", settings)
        named = {"processor_class": Qwen3VLProcessor.__name__}
        write_settings(folder / "preprocessor_config.json", images.to_dict() | named)
        return saved


def write_settings(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_processor(path: str, padding_side: str = "left", revision: str = "main") -> Qwen3VLProcessor:
    """The processor saved with a checkpoint.

    Raises:
        RecipeError: the folder's files do not make an image processor and a tokenizer.
    """
    check_model_folder(path)
    try:
        if (
            not Path(path).is_dir()
            and (found := AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False).model_type)
            != MODEL_TYPE
        ):
            raise RecipeError(
                f"{path} is another model (model_type {found!r}, not {MODEL_TYPE!r}); set model_name_or_path to a Qwen3-VL"
            )
        # By the model's type, not by the class that a file names: plain AutoProcessor wants torchvision for the hub's.
        return ImageQwen3VLProcessor.from_pretrained(path, padding_side=padding_side, revision=revision)
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot load the processor of {path}: {str(error).splitlines()[0]}") from error


def end_tokens(processor: Qwen3VLProcessor) -> list[int]:
    """The tokens that end a report, with either engine: the turn's end and, which Qwen also ends texts with, padding."""
    return list(dict.fromkeys([processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id]))
