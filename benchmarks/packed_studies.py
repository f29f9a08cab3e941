"""What packing saves in SFT's forward and backward pass, and that it is exact: padded rows beside one row, in one run.

Four studies an update's forward pass, as the recipe has it: films of 512 × 512 pixels, every second study with a prior's too,
prompts of 115 tokens and reports of 30 to 250, on the random model of benchmarks/shared_prompts.py. Both ways are the methods of
one trainer on the same studies, one after the other in alternating order.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from trl import SFTConfig

from benchmarks.shared_prompts import PIXELS, random_model, timed
from training.packed_studies import PackedStudies
from training.trainers import ReportTrainer

STUDIES, PROMPT_TOKENS, REPORT_TOKENS = 4, 115, (30, 250)
BATCHES = 3


def make(folder: Path) -> tuple[ReportTrainer, list[dict[str, Any]]]:
    """A trainer that packs, and batches of studies as TRL pads them."""
    model, processor = random_model()
    rows = [{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}]
    trainer = ReportTrainer(
        model=model,
        args=SFTConfig(
            str(folder), per_device_train_batch_size=STUDIES, use_cpu=True, bf16=False, report_to="none",
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=processor,
    )  # fmt: skip
    trainer.pack_studies()
    model.train()
    random = np.random.default_rng(1)
    batches = []
    for _ in range(BATCHES):
        counts = [1 + study % 2 for study in range(STUDIES)]
        films = [
            [Image.fromarray(random.integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8)) for _ in range(n)]
            for n in counts
        ]
        text = ["<|vision_start|><|image_pad|><|vision_end|>" * n for n in counts]
        shown = processor(images=films, text=text, padding=True, padding_side="right", return_tensors="pt")
        studies = []
        for ids, mask in zip(shown["input_ids"], shown["attention_mask"], strict=True):
            report = int(random.integers(*REPORT_TOKENS))
            words = torch.from_numpy(random.integers(0, 300, PROMPT_TOKENS + report))
            studies.append((torch.cat([ids[mask.bool()], words]), report))
        batches.append(padded(studies, processor.image_token_id, shown))
    return trainer, batches


def padded(studies: list[tuple[torch.Tensor, int]], image_token: int, shown: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Studies (their tokens, and how many at the end are the report) as TRL's collator hands them over."""
    ids = torch.nn.utils.rnn.pad_sequence([tokens for tokens, _ in studies], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(tokens) for tokens, _ in studies], batch_first=True)
    labels = torch.full_like(ids, -100)
    for row, (tokens, report) in enumerate(studies):
        labels[row, len(tokens) - report : len(tokens)] = tokens[-report:]
    films = {"pixel_values": shown["pixel_values"], "image_grid_thw": shown["image_grid_thw"]}
    kinds = (ids == image_token).long() * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "mm_token_type_ids": kinds, **films}


def measure(rounds: int = 2) -> dict[str, Any]:
    """Both ways: computed tokens for each real one, CPU seconds, and the largest differences of loss and gradients."""
    with tempfile.TemporaryDirectory() as folder:
        trainer, batches = make(Path(folder))
        collate: PackedStudies = trainer.data_collator
        collate.collate = lambda batch: batch
        ways = {"rows": batches, "packed": [collate(dict(batch)) for batch in batches]}
        found: dict[str, list[Any]] = {way: [] for way in ways}
        for turn in range(rounds):
            for way in sorted(ways, reverse=turn % 2 == 1):
                found[way].append([one(trainer, batch) for batch in ways[way]])
    seconds = {way: [sum(of[0] for of in batches) for batches in runs] for way, runs in found.items()}
    pairs = list(zip(found["rows"][0], found["packed"][0], strict=True))
    real = sum(int(batch["attention_mask"].sum()) for batch in batches)
    computed = {way: sum(batch["input_ids"].numel() for batch in of) for way, of in ways.items()}
    return {
        "studies": STUDIES * BATCHES,
        "computed_tokens_for_each_real": {way: round(tokens / real, 3) for way, tokens in computed.items()},
        "forward_backward_cpu_seconds": {way: round(float(np.median(of)), 2) for way, of in seconds.items()},
        "ratio": round(float(np.median(np.divide(seconds["rows"], seconds["packed"]))), 2),
        "loss_difference": max(abs(one[1] - other[1]) / abs(one[1]) for one, other in pairs),
        "gradient_difference": max(
            float((other[2][name] - gradient).norm() / (gradient.norm() + 1e-12))
            for one, other in pairs
            for name, gradient in one[2].items()
        ),
    }


def one(trainer: ReportTrainer, batch: dict[str, Any]) -> tuple[float, float, dict[str, torch.Tensor]]:
    """CPU seconds of a forward and backward pass, the loss and the gradients."""
    trainer.model.zero_grad()

    def both() -> torch.Tensor:
        tokens = (batch["labels"] != -100).sum()
        loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=tokens)
        loss.backward()
        return loss.detach()

    seconds, loss = timed(both)
    gradients = {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()}
    return seconds, float(loss), gradients
