"""What SFT's loader gives: rows a second of one core, how many cores feed a GPU, and tokens computed for padding.

    python -m benchmarks.bench_loader [--data_dir data --datasets iu_xray mimic]

Rows: films of 512 × 512 pixels as JPEG, opened, made into patches and put together as training does, on the shipped recipe's
batch, by this process and by one and two workers. A GPU asks for so many rows a second as benchmarks/gpu.json's tokens are.
Padding: rows of four studies padded to the longest, beside one row, at the lengths of prepared data sets, and at those that
`make plan` assumes of data sets that are not prepared. Writes benchmarks/loader.json.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.keep import HERE, keep
from benchmarks.shared_prompts import PIXELS, random_model
from launch.planning.assumed import PUBLISHED_STUDIES, Assumptions, Target
from launch.planning.studies import sizes
from model.architectures import ARCHITECTURES

ROWS = 4  # of a forward pass, as in recipes/unirg_cxr/sft.yaml
FILMS, BATCHES = 64, 24
SECOND_FILM = 256  # tokens of 512 × 512 pixels
IMAGES_A_ROW = 1.37  # the paper's mixture: 37% of studies have a prior (make plan)


class Films(torch.utils.data.Dataset):
    """Rows of one film each, opened and processed when they are read."""

    def __init__(self, files: list[Path], processor: Any) -> None:
        self.files, self.processor = files, processor

    def __len__(self) -> int:
        return ROWS * BATCHES

    def __getitem__(self, row: int) -> torch.Tensor:
        with Image.open(self.files[row % len(self.files)]) as film:
            shown = self.processor.image_processor(images=[film.convert("RGB")], return_tensors="pt")
        return shown["pixel_values"]


def rows_a_second(folder: Path) -> dict[str, Any]:
    """By this process and by workers: rows a second, and rows a CPU second of all of them."""
    random = np.random.default_rng(0)
    files = [folder / f"{n}.jpg" for n in range(FILMS)]
    for file in files:
        coarse = Image.fromarray(random.integers(0, 256, (32, 32), dtype=np.uint8))
        coarse.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC).save(file, quality=95)
    _, processor = random_model()
    found = {}
    for workers in (0, 1, 2):
        loader = torch.utils.data.DataLoader(
            Films(files, processor), batch_size=ROWS, collate_fn=torch.cat, num_workers=workers
        )
        began, cpu = time.perf_counter(), sum(os.times()[:4])
        rows = ROWS * sum(1 for _ in loader)
        wall, cpu = time.perf_counter() - began, sum(os.times()[:4]) - cpu
        found[f"{workers} workers"] = {
            "rows_a_second": round(rows / wall, 1),
            "rows_a_cpu_second": round(rows / cpu, 1),
        }
    return found


def padding(datasets: list[str], data_dir: Path) -> dict[str, Any]:
    """Tokens computed for each real one, of rows of `ROWS` studies in random order; mean tokens of prompt and report."""
    target = Target(0, "h100", "single", data_dir, Assumptions())
    drawn = sizes(datasets, "train", True, target, ARCHITECTURES["Qwen3-VL-8B-Instruct"])
    tokens = drawn.drawn.sum(1)[np.random.default_rng(0).permutation(len(drawn.drawn))]
    second = SECOND_FILM * (np.arange(len(tokens)) % 2)
    more = {"": tokens, ", two films": tokens + SECOND_FILM, ", one film or two": tokens + second}
    return {
        "lengths": "counted" if drawn.measured else "assumed",
        "prompt": round(drawn.prompt, 1),
        "report": round(drawn.report, 1),
        **{f"rows{name}": _of_rows(each) for name, each in more.items() if drawn.images == 1 or not name},
        "packed": 1.0,  # packed_studies.json, whatever the lengths
    }


def _of_rows(tokens: np.ndarray) -> float:
    rows = tokens[: len(tokens) // ROWS * ROWS].reshape(-1, ROWS)
    return round(float(rows.max(1).sum() * ROWS / rows.sum()), 3)


def cores_for_a_gpu(rows_a_cpu_second: float, row_tokens: float) -> dict[str, float]:
    """Cores that feed the GPU of benchmarks/gpu.json at the tokens it trained on a second, and at twice as many."""
    entries = json.loads((HERE / "gpu.json").read_text(encoding="utf-8"))
    (rate,) = (entry["tokens_per_gpu_second"] for entry in entries if entry["stage"] == "sft")
    films = rate / row_tokens * IMAGES_A_ROW
    return {name: round(films * times / rows_a_cpu_second, 2) for name, times in (("measured", 1), ("twice", 2))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--datasets", nargs="*", default=[], help="prepared data sets whose lengths are counted")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = rows_a_second(Path(folder))
    published = padding(list(PUBLISHED_STUDIES), Path("nowhere"))
    pads = {"published sizes": published}
    pads |= {name: padding([name], arguments.data_dir) for name in arguments.datasets}
    needed = cores_for_a_gpu(rows["1 workers"]["rows_a_cpu_second"], published["prompt"] + published["report"])
    content = {"films": rows, "cores_for_an_h100": needed, "tokens_computed_for_each_real": pads}
    keep("loader", content)


if __name__ == "__main__":
    main()
