"""Sizes of the Qwen3-VL models, in closed form: parameters, bytes of a checkpoint, of the KV cache. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from foundation.machine import MachineError


@dataclass(frozen=True)
class Architecture:
    """What decides a Qwen3-VL's size: names as in its config.json (vision_config's are prefixed)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    tie_word_embeddings: bool
    vision_hidden_size: int
    vision_intermediate_size: int
    vision_depth: int
    vision_patch_size: int = 16
    vision_temporal_patch_size: int = 2
    vision_spatial_merge_size: int = 2
    vision_num_position_embeddings: int = 2304
    vision_deepstack: int = 3

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Architecture:
        """From the content of a Qwen3-VL config.json."""
        text, vision = config["text_config"], config["vision_config"]
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        return cls(
            **{name: text[name] for name in (*names, "num_key_value_heads", "head_dim")},
            tie_word_embeddings=config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)),
            vision_hidden_size=vision["hidden_size"],
            vision_intermediate_size=vision["intermediate_size"],
            vision_depth=vision["depth"],
            vision_patch_size=vision["patch_size"],
            vision_temporal_patch_size=vision["temporal_patch_size"],
            vision_spatial_merge_size=vision["spatial_merge_size"],
            vision_num_position_embeddings=vision["num_position_embeddings"],
            vision_deepstack=len(vision["deepstack_visual_indexes"]),
        )

    @property
    def attention_width(self) -> int:
        """Width of the queries."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_width(self) -> int:
        """Width of the keys, and of the values."""
        return self.num_key_value_heads * self.head_dim

    @property
    def text_parameters(self) -> int:
        """Parameters of the language model, embeddings included."""
        h, a, k = self.hidden_size, self.attention_width, self.key_value_width
        attention = 2 * h * a + 2 * h * k + 2 * self.head_dim  # q, o; k, v; q_norm, k_norm
        layer = attention + 3 * h * self.intermediate_size + 2 * h
        embeddings = self.vocab_size * h * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * layer + h

    @property
    def vision_parameters(self) -> int:
        """Parameters of the vision tower with its mergers."""
        h, m = self.vision_hidden_size, self.vision_intermediate_size
        patches = 3 * self.vision_temporal_patch_size * self.vision_patch_size**2 * h + h
        block = 4 * h + (3 * h * h + 3 * h) + (h * h + h) + (h * m + m) + (m * h + h)
        merged = h * self.vision_spatial_merge_size**2
        merger = merged * merged + merged + merged * self.hidden_size + self.hidden_size
        mergers = (merger + 2 * h) + self.vision_deepstack * (merger + 2 * merged)
        return patches + self.vision_num_position_embeddings * h + self.vision_depth * block + mergers

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.text_parameters + self.vision_parameters

    def key_value_bytes(self, bytes_each: int = 2) -> int:
        """Bytes of KV cache a token."""
        return 2 * self.num_hidden_layers * self.key_value_width * bytes_each

    def lora_parameters(self, rank: int, targets: Collection[str] | None) -> int:
        """Parameters of LoRA adapters of the language model: on those of its linear layers that `targets` names, or on all."""
        h, a, k, m = self.hidden_size, self.attention_width, self.key_value_width, self.intermediate_size
        widths = {"q_proj": h + a, "k_proj": h + k, "v_proj": h + k, "o_proj": a + h}
        widths |= {"gate_proj": h + m, "up_proj": h + m, "down_proj": m + h}
        named = [width for name, width in widths.items() if name in (targets or ())] or widths.values()
        return rank * self.num_hidden_layers * sum(named)

    def image_tokens(self, pixels: int) -> int:
        """Tokens in the language model of a square image of `pixels` a side."""
        return (pixels // (self.vision_patch_size * self.vision_spatial_merge_size)) ** 2


# config.json of Qwen/Qwen3-VL-{2B,4B,8B,32B}-Instruct on the hub.
ARCHITECTURES = {
    "Qwen3-VL-2B-Instruct": Architecture(151936, 2048, 6144, 28, 16, 8, 128, True, 1024, 4096, 24),
    "Qwen3-VL-4B-Instruct": Architecture(151936, 2560, 9728, 36, 32, 8, 128, True, 1024, 4096, 24),
    "Qwen3-VL-8B-Instruct": Architecture(151936, 4096, 12288, 36, 32, 8, 128, False, 1152, 4304, 27),
    "Qwen3-VL-32B-Instruct": Architecture(151936, 5120, 25600, 64, 64, 8, 128, False, 1152, 4304, 27),
}


def architecture(name: str) -> Architecture | None:
    """Of a checkpoint folder or a known hub name; None where it is neither."""
    config = Path(name) / "config.json"
    if config.is_file():
        try:
            content = json.loads(config.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise MachineError(f"{config} is damaged ({error}); fetch the checkpoint again") from error
        return Architecture.from_config(content) if "vision_config" in content else None
    return ARCHITECTURES.get(PurePosixPath(name).name)


def parameter_count(name: str) -> int | None:
    """Parameters of a checkpoint folder or a known hub name; None where it is neither."""
    known = architecture(name)
    return known.parameters if known else None


def checkpoint_bytes(parameters: int, settings: Mapping[str, Any]) -> int:
    """Bytes of one training checkpoint, by a stage's YAML.

    Weights in the YAML's dtype; beside them, unless `save_only_model`, Adam's two moments and, for 16-bit weights, the
    float32 copy that ZeRO and FSDP train (12 bytes a parameter). LoRA saves the adapter only, about 2% of that.
    """
    each = 4 if settings.get("dtype") == "float32" else 2
    if not settings.get("save_only_model"):
        each += 8 if each == 4 else 12
    return round(parameters * each * (0.02 if settings.get("use_peft") else 1))
