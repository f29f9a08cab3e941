"""The reward engine against the packages used as their authors show: same weights, same GRPO-shaped batch, one run.

    python -m benchmarks.bench_rewards                      # base-size encoders, 16 prompts × 16 rollouts, 63% unique
    python -m benchmarks.bench_rewards --prompts 2          # the same, an eighth of it
    python -m benchmarks.bench_rewards --weights weights    # published weights instead of random ones of their format
    python -m benchmarks.bench_rewards --switches --prompts 2   # instead: what bfloat16, compile and overlap change
    python -m benchmarks.bench_rewards --stream 100000    # instead: memory while many pairs are scored (tiny encoders)

Every part runs in its own process, on `--threads` threads, so that its peak memory is its own. Speed is given in pairs a
CPU second as well as a second of wall clock: the first is the one to compare on a machine with other work. Random weights
do the same arithmetic as trained ones; RadGraph's biases are shifted until its graphs are denser than real ones.

Writes benchmarks/rewards.json and benchmarks/rewards.png; `--stream` writes
benchmarks/rewards_memory.json, `--switches` benchmarks/rewards_switches.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

PARTS = ("radgraph", "sembscore", "bertscore", "composite")
# What each side's composite is made of: the paper's step-1 reward, BLEU-2 left out as it costs nothing.
WEIGHTS = {"bertscore": 0.370, "sembscore": 0.253, "radgraph": 0.377}


# --- one measurement, in a process of its own ---------------------------------------------------------------------------


def packages_scoring(
    part: str, weights: Path, candidates: list[str], references: list[str], cuda: bool = False
) -> Callable[[], Any]:
    """The part as the packages do it: models loaded, the scoring returned as a function."""
    from launch.verifying.packages import load_package

    names = {"radgraph": "radgraph_partial"}
    parts = PARTS[:3] if part == "composite" else (part,)
    packages = [load_package(names.get(name, name), weights, cuda) for name in parts]
    return lambda: [package(candidates, references) for package in packages]


def _ours(
    part: str, weights: Path, candidates: list[str], references: list[str]
) -> tuple[Callable[[], Any], list[Any]]:
    from rewards.composite import CompositeReward
    from rewards.engine import EngineSettings
    from rewards.registry import load_metrics

    names = list(WEIGHTS) if part == "composite" else [part]
    budget = os.environ.get("TOKENS_PER_BATCH")
    settings = EngineSettings(device="cpu", tokens_per_batch=int(budget) if budget else None)
    metrics = load_metrics(names, "real", weights, settings)
    composite = CompositeReward({name: WEIGHTS[name] for name in names}, metrics)
    return (lambda: composite.local_scores(candidates, references)), list(models_of(metrics).values())


def models_of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The text model behind each metric."""
    models = {
        "radgraph": lambda metric: metric.annotate.__self__,
        "sembscore": lambda metric: metric.vectors.__self__,
        "bertscore": lambda metric: metric.model,
    }
    return {name: models[name](metric) for name, metric in metrics.items()}


def measure(side: str, part: str, weights: Path, prompts: int, rollouts: int, threads: int) -> dict[str, Any]:
    """Seconds, memory and, for our side, the encoders' share of one pass over the batch."""
    import torch
    from synthetic_reports import grpo_batch, reports

    torch.set_num_threads(threads)
    candidates, references = grpo_batch(prompts, rollouts)
    warm_up = reports(4, seed=999)
    models: list[Any] = []
    if side == "packages":
        packages_scoring(part, weights, warm_up[:2], warm_up[2:])()
        run = packages_scoring(part, weights, candidates, references)
    else:
        run, models = _ours(part, weights, candidates, references)
        for model in models:
            model.values(warm_up)
            model.encoder_seconds, model.flops = 0.0, 0.0
            count_flops(model)
    rates = matrix_rates() if models else []
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    rates += matrix_rates() if models else []
    result = {
        "pairs": len(candidates),
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "pairs_per_second": len(candidates) / wall,
        "pairs_per_cpu_second": len(candidates) / cpu,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    if part == "radgraph" and models:
        graphs = models[0].annotate(references)
        words = sum(len(text.split()) for text in references)
        result["entities_per_word"] = sum(map(len, graphs)) / words
        result["relations_per_word"] = sum(len(entity.relations) for graph in graphs for entity in graph) / words
    if models:
        encoders = sum(model.encoder_seconds for model in models)
        result |= {
            "encoder_cpu_seconds": encoders,
            "not_encoder_share": 1 - encoders / cpu,
            "encoder_gflops": sum(model.flops for model in models) / encoders / 1e9,
            "matrix_gflops": max(rates),
            "matrix_gflops_median": statistics.median(rates),
            "texts_encoded": sum(model.texts_encoded for model in models) - 4 * len(models),
        }
    return result


def count_flops(model: Any) -> None:
    """Let `model` count the arithmetic of its forward passes, and their CPU time instead of wall clock."""
    encode = model.encode

    def counted(encoder: Any, ids: list[list[int]], first_only: bool = False) -> Any:
        width = encoder.hidden_size
        inner = encoder.layers[0]["up"][0].shape[0]
        for number in range(len(encoder.layers)):
            last = first_only and number == len(encoder.layers) - 1
            for text in ids:
                n = len(text)
                rows = 1 if last else n  # positions with a query, an output and a feed-forward
                model.flops += 2 * width * (2 * n * width + 2 * rows * width + 2 * rows * inner) + 4 * rows * n * width
        start = time.process_time()
        hidden = encode(encoder, ids, first_only)
        seconds = time.process_time() - start
        model.encoder_seconds = model.cpu_seconds = getattr(model, "cpu_seconds", 0.0) + seconds
        return hidden

    model.encode = counted


def matrix_rates(rounds: int = 12, rows: int = 1024) -> list[float]:
    """This machine's float32 matrix rate in GFLOP a CPU second, `rounds` times: plain products in BERT-base's own shapes,
    with as many rows as the engine's batches have, on the threads that the scoring uses, their operands in cache."""
    import torch

    shapes = [(768, 2304), (768, 768), (768, 3072), (3072, 768)]
    operands = [(torch.randn(rows, width), torch.randn(out, width)) for width, out in shapes]
    rates = []
    for _ in range(rounds):
        seconds = 0.0
        for x, weight in operands:
            start = time.process_time()
            torch.nn.functional.linear(x, weight)
            seconds += time.process_time() - start
        rates.append(sum(2 * rows * width * out for width, out in shapes) / seconds / 1e9)
    return rates


# How `switches` runs the engine; the first is what the others are compared with.
SWITCHES = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "compile": {"compile": True},
    "padded bfloat16": {"dtype": "bfloat16", "padded": True},
}


def switches(weights: Path, prompts: int, rollouts: int, threads: int) -> dict[str, Any]:
    """What each switch changes: largest and mean change of each score against float32, and CPU seconds.

    "padded bfloat16" is the forward pass that a GPU gets, run here.
    """
    import numpy as np
    import torch
    from synthetic_reports import grpo_batch, reports

    from rewards.encoder import PaddedEncoder
    from rewards.engine import DTYPES, EngineSettings
    from rewards.registry import load_metrics

    class Padded(EngineSettings):
        def encoder(self, model: Any, layers: int | None = None) -> PaddedEncoder:
            return PaddedEncoder(model, self.torch_device, DTYPES[self.dtype], layers)

    torch.set_num_threads(threads)
    candidates, references = grpo_batch(prompts, rollouts)
    results: dict[str, Any] = {}
    exact: dict[str, Any] = {}
    for switch, options in SWITCHES.items():
        options = dict(options)
        kind = Padded if options.pop("padded", False) else EngineSettings
        metrics = load_metrics(list(WEIGHTS), "real", weights, kind(device="cpu", **options))
        for name, metric in metrics.items():
            metric(reports(6, seed=999), reports(6, seed=998))  # compiles
            seconds = time.process_time()
            scores = metric(candidates, references).astype(np.float64)
            seconds = time.process_time() - seconds
            change = np.abs(scores - exact.setdefault(name, scores))
            results.setdefault(switch, {})[name] = {
                "cpu_seconds": seconds,
                "largest_change": float(change.max()),
                "mean_change": float(change.mean()),
                "standard_deviation_of_scores": float(exact[name].std()),
            }
            print(
                f"{switch:16} {name:10} {seconds:7.2f} s, change up to {change.max():.2g}", file=sys.stderr, flush=True
            )
    return results


def overlap(weights: Path, prompts: int, rollouts: int, threads: int) -> dict[str, float]:
    """Wall seconds of the composite's three metrics on all cores (whatever `threads`): one after another with a thread a
    core, and side by side with one thread each."""
    from concurrent.futures import ThreadPoolExecutor

    import torch
    from synthetic_reports import grpo_batch, reports

    from rewards.engine import EngineSettings
    from rewards.registry import load_metrics

    candidates, references = grpo_batch(prompts, rollouts)
    cores = len(os.sched_getaffinity(0))
    seconds = {}
    for way, threads in (("one after another", cores), ("side by side", 1)):
        torch.set_num_threads(threads)  # of this thread's products: a pool's worker would not inherit it
        metrics = list(load_metrics(list(WEIGHTS), "real", weights, EngineSettings(device="cpu")).values())
        for metric in metrics:
            metric(reports(4, seed=999), reports(4, seed=998))
        start = time.perf_counter()
        if threads > 1:
            for metric in metrics:
                metric(candidates, references)
        else:
            with ThreadPoolExecutor(cores) as pool:
                list(pool.map(lambda metric: metric(candidates, references), metrics))
        seconds[way] = time.perf_counter() - start
    return seconds


def stream(weights: Path, pairs: int, threads: int) -> dict[str, Any]:
    """Memory while `pairs` different pairs go through the composite, with caches far smaller than the texts need.

    Returns:
        `points`: (pairs scored, resident MB) forty times; `growth_mb`: mean of the last ten less mean of the second ten
        (caches are full by then); `peak_mb`; seconds.
    """
    import psutil
    import torch
    from synthetic_reports import reports

    from rewards.engine import EngineSettings
    from rewards.registry import load_metrics

    torch.set_num_threads(threads)
    settings = EngineSettings(device="cpu", cache_megabytes=16)
    metrics = load_metrics([*WEIGHTS, "bleu2"], "real", weights, settings)
    process, points, chunk = psutil.Process(), [], max(1, min(500, pairs // 40))
    wall, cpu = time.perf_counter(), time.process_time()
    with tqdm(total=pairs, desc="pairs", unit="pair") as progress:
        for start in range(0, pairs, chunk):
            n = min(chunk, pairs - start)
            candidates, references = reports(n, seed=2 * start), reports(n, seed=2 * start + 1)
            for metric in metrics.values():
                metric(candidates, references)
            progress.update(n)
            if (start + n) * 40 // pairs > start * 40 // pairs:
                points.append((start + n, round(process.memory_info().rss / 2**20, 1)))
    resident = [megabytes for _, megabytes in points]
    return {
        "pairs": pairs,
        "cache_megabytes": settings.cache_megabytes,
        "first_mb": resident[0],
        "last_mb": resident[-1],
        "growth_mb": sum(resident[-10:]) / 10 - sum(resident[10:20]) / 10,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "points": points,
    }


# --- the whole benchmark ------------------------------------------------------------------------------------------------


def _child(arguments: argparse.Namespace, *task: str) -> Any:
    command = [sys.executable, "-m", "benchmarks.bench_rewards", "--task", *task, "--threads", str(arguments.threads)]
    command += ["--weights", str(arguments.weights), "--prompts", str(arguments.prompts)]
    command += ["--rollouts", str(arguments.rollouts), "--stream", str(arguments.stream)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def random_weights_folder(size: str) -> Path:
    import random_weights

    version_of_them = hashlib.sha256(Path(random_weights.__file__).read_bytes()).hexdigest()[:8]
    folder = Path(tempfile.gettempdir()) / f"reward-bench-{size}-{version_of_them}"
    if not folder.exists():
        print(f"writing {size}-size random weights to {folder}", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            random_weights.write_weights(Path(temporary) / "weights", size).rename(folder)
    return folder


def plot(results: dict[str, Any], path: Path) -> None:
    """Pairs a CPU second of both sides, metric by metric."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parts = [part for part in PARTS if part in results["parts"]]
    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    for offset, side, colour in ((0.2, "packages", "#9aa5b1"), (-0.2, "ours", "#1f6feb")):
        speeds = [results["parts"][part][side]["pairs_per_cpu_second"] for part in parts]
        bars = axes.barh([i + offset for i in range(len(parts))], speeds, 0.38, color=colour, label=side)
        axes.bar_label(bars, [f"{speed:.2f}" for speed in speeds], padding=3, fontsize=8)
    axes.set_yticks(range(len(parts)), [f"{part}  ×{results['parts'][part]['ratio']:.1f}" for part in parts])
    axes.invert_yaxis()
    axes.set_xlabel(f"pairs a CPU second, {results['size']} encoders, {results['threads']} thread(s)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="a weights folder; random weights of the same format where absent")
    parser.add_argument("--size", choices=("base", "tiny"), default="base", help="of the random encoders")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--rollouts", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--stream", type=int, default=0, metavar="PAIRS", help="instead: memory over so many pairs")
    parser.add_argument("--switches", action="store_true", help="instead: what bfloat16, compile and threads change")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of rewards.json and rewards.png")
    parser.add_argument("--task", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        kind, *rest = arguments.task
        if kind == "stream":
            value: Any = stream(arguments.weights, arguments.stream, arguments.threads)
        else:
            work = {"measure": measure, "switches": switches, "overlap": overlap}[kind]
            value = work(*rest, arguments.weights, arguments.prompts, arguments.rollouts, arguments.threads)
        print(json.dumps(value))
        return

    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.stream:
        arguments.weights = arguments.weights or random_weights_folder("tiny")
        memory = _child(arguments, "stream")
        path = _write_json(arguments.out / "rewards_memory.json", {"machine": _machine(), **memory})
        print(f"{memory['first_mb']:.0f} MB after the first pairs, peak {memory['peak_mb']:.0f} MB: {path}")
        return
    published = arguments.weights is not None
    arguments.weights = arguments.weights or random_weights_folder(arguments.size)
    results: dict[str, Any] = {
        "size": "published" if published else arguments.size,
        "threads": arguments.threads,
        "prompts": arguments.prompts,
        "rollouts": arguments.rollouts,
        "machine": _machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "radgraph", "f1chexbert", "bert-score")},
        "parts": {},
    }
    if arguments.switches:
        results |= {"switches": _child(arguments, "switches"), "overlap": _child(arguments, "overlap")}
        del results["parts"]
        print(_write_json(arguments.out / "rewards_switches.json", results))
        return
    print(
        f"{'':10} {'packages':>14} {'ours':>14} {'ratio':>6} {'not encoder':>12} {'of matrix rate':>15} {'memory MB':>16}"
    )
    tasks = [(part, side) for part in arguments.parts for side in ("ours", "packages")]
    for part, side in (progress := tqdm(tasks, unit="run", leave=False)):
        progress.set_description(f"{part}, {side}")
        sides = results["parts"].setdefault(part, {})
        sides[side] = _child(arguments, "measure", side, part)
        if side == "ours":
            continue
        ours, packages = sides["ours"], sides["packages"]
        sides["ratio"] = packages["cpu_seconds"] / ours["cpu_seconds"]
        sides["wall_ratio"] = packages["wall_seconds"] / ours["wall_seconds"]
        sides["share_of_matrix_rate"] = ours["encoder_gflops"] / ours["matrix_gflops"]
        progress.write(
            f"{part:10} {packages['pairs_per_cpu_second']:10.2f}/s {ours['pairs_per_cpu_second']:10.2f}/s {sides['ratio']:6.1f} "
            f"{ours['not_encoder_share']:12.1%} {sides['share_of_matrix_rate']:15.0%} "
            f"{packages['peak_memory_mb']:7.0f} → {ours['peak_memory_mb']:.0f}"
        )
    path = _write_json(arguments.out / "rewards.json", results)
    plot(results, arguments.out / "rewards.png")
    print(f"{path}, {path.with_suffix('.png')}")


def _write_json(path: Path, content: dict[str, Any]) -> Path:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)
    return path


def _machine() -> dict[str, Any]:
    return {"processor": _processor(), "cores": os.cpu_count(), "system": platform.platform()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
