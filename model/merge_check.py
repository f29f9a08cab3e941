"""Whether a merged model is the policy that was trained: log-probabilities of a few studies, before and after merging."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from PIL import Image
from transformers import PreTrainedModel, Qwen3VLProcessor

from data_prep.prepared import load_studies
from data_prep.study import StudyError
from foundation.errors import RecipeError, read_json
from model.prompts import build_prompt, prompt_images, study_report

STUDIES = 2
# Largest difference of a token's log-probability in float32, where only sums in another order differ (seen: 3e-6).
FLOAT32_LIMIT = 1e-3
# Mean difference in 16 bits, where every weight is rounded once (seen: 0.01; embeddings merged into a tied head: 0.3).
HALF_LIMIT = 0.05
# What is asked where a stage's own studies are not at hand.
DRAWN = {"indication": "Cough.", "findings": "The lungs are clear. No effusion.", "impression": "No acute disease."}


def compared(
    policy: PeftModel,
    merge: Callable[[PeftModel], PreTrainedModel],
    processor: Qwen3VLProcessor,
    adapter: Path,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """`merge(policy)`, and how far its log-probabilities are from the policy's.

    Returns:
        The merged model; `studies`, `max_logp_difference` and `mean_logp_difference` (nats a token), `training_moved` (the
        policy against its base: mean nats a token) and all of it in one line, `summary`.

    Raises:
        RecipeError: they differ beyond rounding.
    """
    batch, whose = _batch(processor, adapter)
    batch = {name: tensor.to(policy.device) for name, tensor in batch.items()}
    trained = _log_probabilities(policy, batch)
    with policy.disable_adapter():
        moved = (trained - _log_probabilities(policy, batch)).abs().mean().item()
    merged = merge(policy)
    difference = (_log_probabilities(merged, batch) - trained).abs()
    largest, mean = difference.max().item(), difference.mean().item()
    summary = f"log-probabilities {mean:.2g} apart (at most {largest:.2g}), where training moved them by {moved:.2g} ({whose})"
    exact = merged.dtype in (torch.float32, torch.float64)
    if not (largest <= FLOAT32_LIMIT if exact else mean <= HALF_LIMIT):  # so that NaN is refused too
        raise RecipeError(
            f"{adapter}: merged with its base it is another policy: {summary}; train without the modules of "
            "lora_target_modules or lora_modules_to_save that cannot be merged"
        )
    return merged, {
        "studies": STUDIES,
        "max_logp_difference": largest,
        "mean_logp_difference": mean,
        "training_moved": moved,
        "summary": summary,
    }


@torch.no_grad()
def _log_probabilities(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of each token that follows another in the batch: float32 [n]."""
    logits = model(**batch).logits[:, :-1]
    following = batch["input_ids"][:, 1:]
    rows = [
        torch.log_softmax(logits[i].float(), -1).gather(-1, following[i][:, None]).squeeze(-1)
        for i in range(len(logits))  # one study at a time: a vocabulary of 151,936 in float32
    ]
    return torch.stack(rows)[batch["attention_mask"][:, 1:].bool()]


def _batch(processor: Qwen3VLProcessor, adapter: Path) -> tuple[dict[str, torch.Tensor], str]:
    """Prompts and reports of the stage's first studies; drawn ones where the stage's data are not here."""
    studies, whose = _studies_of_stage(adapter.parent)
    texts, images = [], []
    for study in studies:
        messages = build_prompt(study, longitudinal=False)
        prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        texts.append(prompt + study_report(study))
        images.append(study["opened"])
    return dict(processor(text=texts, images=images, padding=True, return_tensors="pt")), whose


def _studies_of_stage(folder: Path) -> tuple[list[dict[str, Any]], str]:
    path = folder / "settings.json"
    if path.is_file():
        settings = read_json(path)
        try:
            studies = load_studies(settings["datasets"], settings["data_dir"], settings["train_split"])[:STUDIES]
            for study in studies:
                with Image.open(Path(study["folder"]) / prompt_images(study, False)[0]) as image:
                    study["opened"] = image.convert("RGB")
            return studies, f"{len(studies)} studies of {settings['datasets'][0]}"
        except (StudyError, OSError, KeyError):
            pass  # a checkpoint that was taken elsewhere
    noise = np.random.default_rng(0).integers(0, 256, (STUDIES, 512, 512), dtype=np.uint8)
    drawn = [{**DRAWN, "opened": Image.fromarray(pixels).convert("RGB")} for pixels in noise]
    return drawn, f"{STUDIES} drawn studies"
