"""Our reward beside RadEval's own TRL reward of the same metrics: same weights, same GRPO-shaped batches, one run.

    python -m benchmarks.bench_radeval                # 3 rounds of 2 prompts × 16 rollouts, base-size encoders, random weights
    python -m benchmarks.bench_radeval --weights weights --prompts 16

RadEval's comparable reward is `radeval.rewards.make_reward_fn("radcliq")`: RadGraph-F1, BERTScore, SembScore and BLEU-2 of each
pair, summed with RadCliQ's coefficients, of which the composite of step 1 has its weights. Beside it stand that composite and
`rewards.trl.reward_function("radcliq_v1")`. Needs radeval 2.2.1 (an environment of its own:
`pip install --no-deps radeval==2.2.1 stanza`). Nothing of RadEval is changed: its downloads find the weights where they would
have put them.

Each side is a process of its own, on one thread, and they take turns: in each round all score the same batch, which no round
before had, so that no cache helps and other work on the machine meets all of them. Ratios are the median over rounds of CPU
seconds; on a GPU, where RadEval takes it too, of wall seconds. Writes benchmarks/radeval.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_rewards import ROOT, WEIGHTS, count_flops, matrix_rates, models_of, random_weights_folder

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


def scoring(side: str, weights: Path) -> tuple[Callable[[list[str], list[str]], Any], list[Any]]:
    """What scores a batch, and our text models that it runs."""
    if side == "radeval":
        from rewards.assemble import load_parts

        return load_parts(["radeval:radcliq"])["radeval:radcliq"], []
    from rewards.registry import load_metrics

    if side == "radcliq_v1":
        return load_metrics([side], "real", weights)[side], []
    metrics = load_metrics(list(WEIGHTS), "real", weights)
    models = list(models_of(metrics).values())
    for model in models:
        model.flops = 0.0
        count_flops(model)
    return lambda c, r: sum(weight * metrics[name](c, r) for name, weight in WEIGHTS.items()), models


def take_turns(side: str, weights: Path, prompts: int, rollouts: int) -> None:
    """Score a batch for each number on standard input, which is its seed; a line of JSON with scores and seconds for each."""
    import torch
    from synthetic_reports import grpo_batch, reports

    torch.set_num_threads(1)
    run, models = scoring(side, weights)
    warm = grpo_batch(prompts, rollouts, seed=999) if torch.cuda.is_available() else (reports(2, 999), reports(2, 998))
    run(*warm)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        candidates, references = grpo_batch(prompts, rollouts, seed=int(line))
        for model in models:
            model.encoder_seconds, model.cpu_seconds, model.flops, model.texts_encoded = 0.0, 0.0, 0.0, 0
        wall, cpu = time.perf_counter(), time.process_time()
        scores = run(candidates, references)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        turn = {
            "pairs": len(candidates),
            "wall_seconds": wall,
            "cpu_seconds": cpu,
            "scores": [float(s) for s in scores],
        }
        if models:
            encoders = sum(model.encoder_seconds for model in models)
            turn |= {
                "encoder_seconds": encoders,
                "encoder_gflop": sum(model.flops for model in models) / 1e9,
                "texts_encoded": max(model.texts_encoded for model in models),
                "matrix_gflops": max(matrix_rates()) if not torch.cuda.is_available() else None,
            }
        print(json.dumps(turn), flush=True)


def compare(weights: Path, prompts: int, rollouts: int, rounds: int) -> dict[str, Any]:
    """All sides' rounds and their ratios.

    Raises:
        RuntimeError: a side ended early; what it said is on standard error.
    """
    import torch

    sys.modules.setdefault("RadEval", __import__("radeval"))  # rewards/radeval.py says why
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as started:
        environment = os.environ | as_downloaded(weights, Path(temporary)) | {"OMP_NUM_THREADS": "1"}
        processes = {}
        for side in SIDES:
            command = [sys.executable, "-m", "benchmarks.bench_radeval", "--side", side, "--weights", str(weights)]
            command += ["--prompts", str(prompts), "--rollouts", str(rollouts)]
            processes[side] = started.enter_context(
                subprocess.Popen(
                    command, cwd=temporary, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            _answer(processes[side], side)
        for number in range(rounds):
            for side in SIDES if number % 2 == 0 else reversed(SIDES):
                process = processes[side]
                process.stdin.write(f"{number}\n")
                process.stdin.flush()
                turns[side].append(_answer(process, side))
                print(f"round {number + 1}, {side}: {turns[side][-1]['cpu_seconds']:.2f} CPU s", file=sys.stderr)
        for process in processes.values():
            process.stdin.close()
    unit = "wall_seconds" if torch.cuda.is_available() else "cpu_seconds"
    ratios = {
        side: [theirs[unit] / ours[unit] for theirs, ours in zip(turns["radeval"], turns[side], strict=True)]
        for side in SIDES[1:]
    }
    limits = [
        theirs["cpu_seconds"] / (ours["encoder_gflop"] / ours["matrix_gflops"])
        for theirs, ours in zip(turns["radeval"], turns["composite"], strict=True)
        if ours["matrix_gflops"]
    ]
    theirs, ours = (np.concatenate([turn.pop("scores") for turn in turns[side]]) for side in SIDES[:2])
    for turn in turns["composite"]:
        del turn["scores"]
    return {
        "radeval": version("radeval"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "prompts": prompts,
        "rollouts": rollouts,
        "rounds": turns,
        "ratio of": unit,
        "times as fast, each round": ratios,
        "times as fast": {side: statistics.median(values) for side, values in ratios.items()},
        # Were our encoders' arithmetic done at this machine's float32 matrix rate, and nothing else at all.
        "composite, at most": statistics.median(limits) if limits else None,
        # RadEval weights words by idf over the references of the batch, which the published RadCliQ does not.
        "RadCliQ-v1, largest difference": float(np.abs(theirs - ours).max()),
        "RadCliQ-v1, correlation": float(np.corrcoef(theirs, ours)[0, 1]),
    }


def _answer(process: subprocess.Popen, side: str) -> Any:
    for line in process.stdout:
        with contextlib.suppress(json.JSONDecodeError):  # what packages print
            return json.loads(line)
    raise RuntimeError(f"{side} ended early, exit status {process.wait()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="folder of make weights (default: random ones of base size)")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--rollouts", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "radeval.json")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    weights = (arguments.weights or random_weights_folder("base")).resolve()
    if arguments.side:
        take_turns(arguments.side, weights, arguments.prompts, arguments.rollouts)
        return
    content = {"weights": "given" if arguments.weights else "random, base size"}
    content |= compare(weights, arguments.prompts, arguments.rollouts, arguments.rounds)
    arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
