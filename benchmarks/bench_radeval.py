"""Our reward beside RadEval's own TRL reward of the same metrics: same weights, same GRPO-shaped batch, one run.

    python -m benchmarks.bench_radeval                # 2 prompts × 16 rollouts, base-size encoders, random weights
    python -m benchmarks.bench_radeval --weights weights --prompts 16

RadCliQ-v1 is what both make of RadGraph, BERTScore, SembScore and BLEU-2: `radeval.rewards.make_reward_fn("radcliq")` there,
`rewards.trl.reward_function("radcliq_v1")` here; beside them the composite of step 1. Needs radeval 2.2.1 (an environment of its
own: `pip install --no-deps radeval==2.2.1 stanza`). Each side runs in a process of its own, on one thread; speed is in pairs a CPU
second. Nothing of RadEval is changed: its downloads find the weights where they would have put them. Writes benchmarks/radeval.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_rewards import ROOT, WEIGHTS, random_weights_folder

PUBMEDBERT = "microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract-fulltext"
SIDES = ("radeval", "radcliq_v1", "composite")


def as_downloaded(weights: Path, folder: Path) -> dict[str, str]:
    """Lay `weights` out in `folder` as RadEval's downloads would have; returns the environment that makes it look there.

    A model's name is also a path: transformers takes a folder of that name in the working folder for it.
    """
    import torch
    from transformers import BertConfig, BertModel

    from rewards.weights import radgraph_folder

    for name in ("bert-base-uncased", "distilroberta-base"):
        (folder / name).symlink_to((weights / name).resolve())
    encoder = folder / PUBMEDBERT
    encoder.mkdir(parents=True)
    for path in (weights / encoder.name).iterdir():
        (encoder / path.name).symlink_to(path.resolve())
    torch.manual_seed(0)  # any numbers: RadGraph's checkpoint has its own encoder, which is loaded over these
    model = BertModel(BertConfig.from_pretrained(encoder))
    torch.save(model.state_dict(), encoder / "pytorch_model.bin")
    cache = folder / "cache"
    hub = cache / "chexbert" / "models--StanfordAIMI--RRG_scorers"
    (hub / "refs").mkdir(parents=True)
    (hub / "snapshots" / "local").mkdir(parents=True)
    (hub / "refs" / "main").write_text("local")
    (hub / "snapshots" / "local" / "chexbert.pth").symlink_to((weights / "chexbert.pth").resolve())
    from radeval.metrics.radgraph._vendor.core import _UPSTREAM_RADGRAPH_VERSION

    target = cache / "radgraph" / _UPSTREAM_RADGRAPH_VERSION
    target.mkdir(parents=True)
    (target / "radgraph").symlink_to(radgraph_folder(weights, "radgraph").resolve())
    return {"XDG_CACHE_HOME": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}


def measure(side: str, weights: Path, prompts: int, rollouts: int) -> dict[str, Any]:
    """Scores, wall and CPU seconds of one pass over the batch, after a warm-up on other reports."""
    import torch
    from synthetic_reports import grpo_batch, reports

    torch.set_num_threads(1)
    candidates, references = grpo_batch(prompts, rollouts)
    if side == "radeval":
        from rewards.assemble import load_parts

        part = load_parts(["radeval:radcliq"])["radeval:radcliq"]

        def run(c: list[str], r: list[str]) -> Any:
            return part(c, r)
    elif side == "composite":
        from rewards.assemble import assemble

        composite = assemble(WEIGHTS, weights_dir=weights)

        def run(c: list[str], r: list[str]) -> Any:
            parts = composite.local_scores(c, r)
            return sum(weight * parts[composite.full_name(name)] for name, weight in WEIGHTS.items())
    else:
        from rewards.registry import load_metrics

        metric = load_metrics([side], "real", weights)[side]
        run = metric
    warm = reports(4, seed=999)
    run(warm[:2], warm[2:])
    wall, cpu = time.perf_counter(), time.process_time()
    scores = run(candidates, references)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"pairs": len(candidates), "wall_seconds": wall, "cpu_seconds": cpu, "scores": [float(s) for s in scores]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="folder of make weights (default: random ones of base size)")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--rollouts", type=int, default=16)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "radeval.json")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    weights = (arguments.weights or random_weights_folder("base")).resolve()
    if arguments.side:
        print(json.dumps(measure(arguments.side, weights, arguments.prompts, arguments.rollouts)))
        return
    sys.modules.setdefault("RadEval", __import__("radeval"))  # rewards/radeval.py says why
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        environment = os.environ | as_downloaded(weights, Path(temporary)) | {"OMP_NUM_THREADS": "1"}
        for side in SIDES:
            command = [sys.executable, "-m", "benchmarks.bench_radeval", "--side", side, "--weights", str(weights)]
            command += ["--prompts", str(arguments.prompts), "--rollouts", str(arguments.rollouts)]
            done = subprocess.run(
                command, cwd=temporary, env=environment, stdout=subprocess.PIPE, text=True, check=True
            )
            results[side] = json.loads(done.stdout.splitlines()[-1])
    scores = {side: np.array(result.pop("scores")) for side, result in results.items()}
    for result in results.values():
        result["pairs_per_cpu_second"] = result["pairs"] / result["cpu_seconds"]
    content = {
        "radeval": version("radeval"),
        "weights": "given" if arguments.weights else "random, base size",
        "prompts": arguments.prompts,
        "rollouts": arguments.rollouts,
        "sides": results,
        "times as fast": {
            side: results[side]["pairs_per_cpu_second"] / results["radeval"]["pairs_per_cpu_second"]
            for side in SIDES[1:]
        },
        # RadEval weights words by idf over the references of the batch, which the published RadCliQ does not.
        "RadCliQ-v1, largest difference": float(np.abs(scores["radeval"] - scores["radcliq_v1"]).max()),
        "RadCliQ-v1, correlation": float(np.corrcoef(scores["radeval"], scores["radcliq_v1"])[0, 1]),
    }
    arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
