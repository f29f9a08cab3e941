"""What handling each study once saves in GRPO's forward and backward pass, at the paper's shape, and that it is exact.

One study of two 512 × 512 films, 558 prompt tokens, 16 rollouts of 140 tokens on average (60 to 220), on a random Qwen3-VL
of 28 M parameters, wide rather than deep, so that arithmetic decides as it does in large ones. TRL's own method and ours are the methods of one trainer, on the
same rollouts, one after the other in alternating order.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor
from trl import GRPOConfig

from recipes.tiny_model import build_model, build_processor, build_tokenizer
from training.shared_prompts import Films
from training.trainers import RolloutTrainer

PROMPT_TOKENS, REPORT_TOKENS, ROLLOUTS, PIXELS = 558, (60, 220), 16, 512
SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 128,
}
VISION = {"hidden_size": 128, "intermediate_size": 384, "depth": 2, "deepstack_visual_indexes": [0]}


def random_model() -> tuple[Qwen3VLForConditionalGeneration, Qwen3VLProcessor]:
    """The model of the paper's shape, and a processor for it."""
    tokenizer = build_tokenizer(["the heart is normal in size and the lungs are clear"] * 50, 400)
    processor = build_processor(tokenizer, PIXELS)
    config = build_model(tokenizer, PIXELS, 1).config.to_dict()
    config["text_config"] |= {**SHAPE, "max_position_embeddings": 4096, "vocab_size": 2048}
    config["text_config"]["rope_parameters"]["mrope_section"] = [24, 20, 20]
    config["vision_config"] |= {**VISION, "out_hidden_size": SHAPE["hidden_size"]}
    torch.manual_seed(1)
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config)), processor


def paper_shape(folder: Path) -> tuple[RolloutTrainer, dict[str, Any]]:
    """A trainer on the random model, and TRL's tensors of one study's rollouts, films once a rollout."""
    model, processor = random_model()
    trainer = RolloutTrainer(
        model=model,
        reward_funcs=lambda completions, **columns: [0.0] * len(completions),
        args=GRPOConfig(
            str(folder), per_device_train_batch_size=ROLLOUTS, num_generations=ROLLOUTS, use_cpu=True, bf16=False,
            gradient_checkpointing=False, report_to="none",
        ),
        train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": "report"}]]}),
        processing_class=processor,
    )  # fmt: skip
    model.train()
    random = np.random.default_rng(1)
    films = [Image.fromarray(random.integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8)) for _ in range(2)]
    text = " ".join(["<|vision_start|><|image_pad|><|vision_end|>"] * 2)
    rows = processor(images=[films] * ROLLOUTS, text=[text] * ROLLOUTS, padding=True, return_tensors="pt")
    words = torch.randint(300, (1, PROMPT_TOKENS - rows["input_ids"].shape[1])).expand(ROLLOUTS, -1)
    lengths = torch.randint(*REPORT_TOKENS, (ROLLOUTS,))
    width = int(lengths.max())
    completion_mask = (torch.arange(width) < lengths[:, None]).long()
    ids = torch.cat([words, rows["input_ids"], torch.randint(300, (ROLLOUTS, width))], dim=1)
    kinds = torch.nn.functional.pad(rows["mm_token_type_ids"], (words.shape[1], width))
    return trainer, {
        "input_ids": ids,
        "attention_mask": torch.cat([torch.ones(ROLLOUTS, PROMPT_TOKENS, dtype=torch.long), completion_mask], dim=1),
        "logits_to_keep": width,
        "pixel_values": rows["pixel_values"],
        "image_grid_thw": rows["image_grid_thw"],
        "num_images": [2] * ROLLOUTS,
        "mm_token_type_ids": kinds,
    }


def measure(rounds: int = 2) -> dict[str, Any]:
    """Both ways at the paper's shape: CPU seconds, memory kept for the backward pass, and the largest differences."""
    with tempfile.TemporaryDirectory() as folder:
        trainer, batch = paper_shape(Path(folder))
        patches = len(batch["pixel_values"]) // ROLLOUTS
        ways = {"trl": batch, "ours": {**batch, "pixel_values": Films([batch["pixel_values"][:patches]] * ROLLOUTS)}}
        found = {way: [] for way in ways}
        for turn in range(rounds):
            for way in sorted(ways, reverse=turn % 2 == 1):
                found[way].append(_one(trainer, ways[way]))
    (theirs, their_gradients, _, _), (ours, our_gradients, _, _) = found["trl"][0], found["ours"][0]
    seconds = {way: np.array([[forward, both] for _, _, (forward, both), _ in runs]) for way, runs in found.items()}
    ratios = np.median(seconds["trl"] / seconds["ours"], axis=0)
    kept = {way: runs[0][3] for way, runs in found.items()}
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "report_tokens": round(float(batch["attention_mask"].sum(1).float().mean()) - PROMPT_TOKENS, 1),
        "rollouts": ROLLOUTS,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "forward_cpu_seconds": {way: round(float(np.median(of[:, 0])), 2) for way, of in seconds.items()},
        "forward_backward_cpu_seconds": {way: round(float(np.median(of[:, 1])), 2) for way, of in seconds.items()},
        "forward_ratio": round(float(ratios[0]), 2),
        "forward_backward_ratio": round(float(ratios[1]), 2),
        "kept_for_backward_mib": {way: round(size / 2**20) for way, size in kept.items()},
        "log_probability_difference": float((theirs - ours).abs().max()),
        "gradient_difference": max(
            float((our_gradients[name] - gradient).norm() / (gradient.norm() + 1e-12))
            for name, gradient in their_gradients.items()
        ),
    }


def _one(trainer: RolloutTrainer, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor], Any, int]:
    """Log-probabilities, gradients, CPU seconds of a forward and of a forward and backward pass, bytes kept between them."""

    def forward() -> torch.Tensor:
        return trainer._get_per_token_logps_and_entropies(trainer.model, compute_entropy=True, **batch)[0]

    with torch.no_grad():
        alone, _ = timed(forward)
    trainer.model.zero_grad()
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def both() -> torch.Tensor:
        logps = forward()
        weights = torch.randn(logps.shape, generator=torch.Generator().manual_seed(2))
        (logps * weights).sum().backward()
        return logps.detach()

    seconds, logps = timed(both)
    gradients = {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return logps, gradients, (alone, seconds), sum(kept.values())


def timed(call: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    """CPU seconds of a call, and its result."""
    began = time.process_time()
    result = call()
    return time.process_time() - began, result
