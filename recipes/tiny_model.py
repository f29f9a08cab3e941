"""A tiny Qwen3-VL with random weights, built locally: the demo's base model.

Everything but the size is Qwen3-VL's own: transformers' classes, special tokens, chat template (from TRL's wheel), M-RoPE,
deepstack, patch merging. It is saved as any checkpoint is, so no later stage knows that it is tiny.

    python -m recipes.tiny_model --datasets phantom_harbor phantom_summit --output_dir outputs/demo/base
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers import logging as transformers_logging
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from data_prep.study import read_studies
from foundation.errors import RecipeError, run_command
from foundation.removal import remove_own
from model.processor import ImageQwen3VLProcessor
from model.prompts import build_prompt, study_report

# Qwen3-VL's special tokens, in its order (tokenizer_config.json of Qwen/Qwen3-VL-8B-Instruct).
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Qwen2's pre-tokenisation pattern (transformers, tokenization_qwen2.py).
PRE_TOKENIZER_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATCH_SIZE, MERGE_SIZE, HIDDEN, HEADS, HEAD_DIM = 16, 2, 128, 4, 32


def build_tokenizer(texts: Iterable[str], vocabulary_size: int) -> Qwen2Tokenizer:
    """A byte-level BPE of at most `vocabulary_size` tokens trained on `texts`, with Qwen3-VL's special tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRE_TOKENIZER_PATTERN), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    trained = json.loads(bpe.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=trained["vocab"],
        merges=[tuple(merge) for merge in trained["merges"]],
        unk_token=None,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=[token for token in SPECIAL_TOKENS if token not in ("<|im_end|>", "<|endoftext|>")],
    )


def build_processor(tokenizer: Qwen2Tokenizer, image_size: int) -> ImageQwen3VLProcessor:
    """Qwen3-VL's image processing at about `image_size` × `image_size` pixels (aspect kept), with its chat template."""
    area = image_size * image_size
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=PATCH_SIZE,
        merge_size=MERGE_SIZE,
        temporal_patch_size=2,
        size={"shortest_edge": area, "longest_edge": area},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    template = (files("trl") / "chat_templates" / "qwen3_vl.jinja").read_text(encoding="utf-8")
    return ImageQwen3VLProcessor(image_processor, tokenizer, chat_template=template)


def build_model(tokenizer: Qwen2Tokenizer, image_size: int, seed: int) -> Qwen3VLForConditionalGeneration:
    """About 1.5 million parameters, float32, random weights from `seed`.

    `initializer_range` is 0.06, not Qwen's 0.02: at this width the smaller one learns much more slowly.
    """
    torch.manual_seed(seed)
    token_id = tokenizer.convert_tokens_to_ids
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": (len(tokenizer) + 63) // 64 * 64,
            "hidden_size": HIDDEN,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS,
            "num_key_value_heads": 2,
            "head_dim": HEAD_DIM,
            "max_position_embeddings": 2048,
            "initializer_range": 0.06,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": True,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "depth": 2,
            "hidden_size": HIDDEN,
            "intermediate_size": 256,
            "num_heads": HEADS,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": MERGE_SIZE,
            "temporal_patch_size": 2,
            "out_hidden_size": HIDDEN,
            "num_position_embeddings": (image_size // PATCH_SIZE) ** 2,
            "deepstack_visual_indexes": [0],
            "initializer_range": 0.06,
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = Qwen3VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def training_texts(datasets: list[str], data_dir: str) -> list[str]:
    """All that a prompt or a report of the training studies can say: the tokenizer's corpus."""
    texts = ["system\nuser\nassistant\n"] * 8
    for name in datasets:
        for study in read_studies(Path(data_dir) / name, "train").to_pylist():
            texts += [part["text"] for part in build_prompt(study)[0]["content"] if part["type"] == "text"]
            texts.append(study_report(study))
    return texts


def save_tiny_model(
    texts: Iterable[str], output_dir: Path, image_size: int = 96, vocabulary_size: int = 1024, seed: int = 1
) -> None:
    """Build tokenizer, processor and model and save them to `output_dir` as one checkpoint (atomically)."""
    tokenizer = build_tokenizer(texts, vocabulary_size)
    processor = build_processor(tokenizer, image_size)
    model = build_model(tokenizer, image_size, seed)
    temporary = output_dir.with_name(f".{output_dir.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    model.save_pretrained(temporary)
    processor.save_pretrained(temporary)
    if output_dir.exists():
        replaced = [path.name for path in temporary.iterdir()]
        remove_own(output_dir, ["config.json", *replaced], (output_dir / "config.json").is_file(), {}, "FORCE=1")
        output_dir.rmdir()
    temporary.rename(output_dir)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{output_dir}: Qwen3-VL, {parameters / 1e6:.2f} M parameters, {len(tokenizer)} tokens, random weights (seed {seed})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--datasets", nargs="+", required=True, help="prepared data sets whose training texts make the BPE"
    )
    parser.add_argument("--data_dir", default="data", help="folder that holds the prepared data sets")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--image_size", type=int, default=96, help="pixels a side that an image is resized to")
    parser.add_argument("--vocabulary_size", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--force", action="store_true", help="build again where one is")
    arguments = parser.parse_args()
    for name, least in (("seed", 0), ("vocabulary_size", 300), ("image_size", 32)):
        if (value := getattr(arguments, name)) < least:
            raise RecipeError(f"--{name} is {value}; it must be at least {least}")
    transformers_logging.disable_progress_bar()
    if (arguments.output_dir / "config.json").is_file() and not arguments.force:
        print(f"{arguments.output_dir}: base model is there already (FORCE=1 builds it again)")
        return
    texts = training_texts(arguments.datasets, arguments.data_dir)
    save_tiny_model(texts, arguments.output_dir, arguments.image_size, arguments.vocabulary_size, arguments.seed)


if __name__ == "__main__":
    run_command(main)
