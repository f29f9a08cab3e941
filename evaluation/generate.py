"""Write a model's report for every study of a prepared data set: greedy, batched, resumable study by study.

    python -m evaluation generate --model outputs/demo/sft/final --data data/phantom_coast --out outputs/demo/eval/…

Paper, Inference: temperature 0, the key image, indication and comparison as context, the prior image and report where
the study has them. Each finished study is one line of `predictions.partial.jsonl`; the last step writes
`predictions.json` in ReXrank's form and `generation.json` (settings, fingerprints, counts).
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from data_prep.images import ImageError, load_grey, resize
from evaluation.errors import EvaluationError
from evaluation.predictions import SECTIONS, rexrank_entry, studies_of_data, write_json
from recipes.prompts import build_prompt, prompt_images

ENGINES = ("auto", "transformers", "vllm")
_TEMPLATE = {"available": None, "findings_impression": ("findings", "impression"), "findings": ("findings",)}


@dataclass(frozen=True)
class GenerationSettings:
    """What decides a generated report, beside the model and the data.

    Attributes:
        sections: which template: by the reference's sections, both sections, or findings alone.
        longitudinal: show the prior image and report where there are both.
        context: show indication and comparison.
        max_new_tokens: a longer report is cut there, and counted as truncated.
        engine: vllm (a GPU's default) or transformers.
        dtype: of the weights; `auto` is the checkpoint's.
    """

    sections: str = "available"
    longitudinal: bool = True
    context: bool = True
    max_new_tokens: int = 512
    engine: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if self.sections not in SECTIONS:
            raise EvaluationError(f"sections is {self.sections!r}; choose one of {', '.join(SECTIONS)}")
        if self.engine not in ENGINES:
            raise EvaluationError(f"engine is {self.engine!r}; choose one of {', '.join(ENGINES)}")
        if self.max_new_tokens < 1:
            raise EvaluationError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")


# Takes studies, returns their (report, was it cut at max_new_tokens).
Writer = Callable[[Sequence[Mapping[str, Any]]], list[tuple[str, bool]]]


def generate(
    model: str,
    data: Path,
    split: str,
    out: Path,
    settings: GenerationSettings,
    batch_size: int = 16,
    max_studies: int | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Generate for one split of a prepared folder; returns what `generation.json` holds.

    Raises:
        EvaluationError: an unreadable image, or results of other settings in `out` (force replaces them).
        RecipeError, StudyError: no such model or data.
    """
    from recipes.models import check_model_folder, model_fingerprint  # loads torch: only where a model is needed

    studies = studies_of_data(data, split)[:max_studies]
    check_model_folder(model)
    settings = engine_here(settings)
    made_by = {
        "model": model,
        "model_sha256": model_fingerprint(model),
        "data": data.name,
        "split": split,
        "data_sha256": hashlib.sha256((data / f"{split}.parquet").read_bytes()).hexdigest(),
        "studies": len(studies),
        **asdict(settings),
    }
    finished = load_finished(out, made_by, force)
    if finished:
        return finished
    check_images(studies, settings)
    workers = _gpu_count()
    started = time.monotonic()
    if workers > 1:
        _on_each_gpu(workers, model, data, split, out, settings, batch_size, max_studies)
    else:
        write_reports(studies, partial_path(out), lambda: make_writer(model, settings), batch_size, partials(out))
    return finish(out, studies, made_by, time.monotonic() - started)


def load_finished(out: Path, made_by: Mapping[str, Any], force: bool) -> dict[str, Any] | None:
    """`generation.json` where the work is done; None where it is to do or to go on with.

    Predictions of a model or of data that have changed since (same names, other contents) are made again.

    Raises:
        EvaluationError: what lies there was made with other settings.
    """
    settings_path = out / "generation.json"
    if settings_path.is_file() and not force:
        before = json.loads(settings_path.read_text(encoding="utf-8"))
        changed = [key for key, value in made_by.items() if before["made_by"].get(key) != value]
        if set(changed) - {"model_sha256", "data_sha256", "studies"}:
            raise EvaluationError(
                f"{out} holds predictions made with another {', '.join(changed)}; --force replaces them, or choose another --out"
            )
        if changed:
            print(f"{out}: {' and '.join(changed)} changed since these predictions; making them again")
            force = True
    if force:
        for file in [out / "predictions.json", settings_path, *partials(out)]:
            file.unlink(missing_ok=True)
    if settings_path.is_file():
        if before.get("finished") and (out / "predictions.json").is_file():
            print(f"{out}: predictions finished already (--force makes them again)")
            return before
    else:
        write_json(settings_path, {"finished": False, "made_by": dict(made_by)})
    return None


def partial_path(out: Path, shard: int | None = None) -> Path:
    return out / ("predictions.partial.jsonl" if shard is None else f"predictions.partial.{shard}.jsonl")


def partials(out: Path) -> list[Path]:
    """All files of finished lines in `out`: one, or one a GPU."""
    return sorted(out.glob("predictions.partial*.jsonl"))


def write_reports(
    studies: Sequence[Mapping[str, Any]],
    path: Path,
    load_writer: Callable[[], Writer],
    batch_size: int,
    others: Iterable[Path] = (),
) -> None:
    """Append a line per study to `path`, in batches of similar prompts; studies that it, or `others`, hold are done."""
    drop_cut_line(path)
    done = {row["study_id"] for file in {path, *others} for row in read_lines(file)}
    todo = [study for study in studies if study["study_id"] not in done]
    if not todo:
        return
    writer = load_writer()
    # Alike prompts share a batch: little padding. The order is fixed by the studies alone.
    todo.sort(
        key=lambda s: (bool(s.get("prior_image")), len(s.get("indication") or "") + len(s.get("prior_report") or ""))
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("a", encoding="utf-8") as file,
        tqdm(total=len(studies), initial=len(studies) - len(todo), desc="reports", unit="study") as bar,
    ):
        for start in range(0, len(todo), batch_size):
            batch = todo[start : start + batch_size]
            for study, (report, truncated) in zip(batch, writer(batch), strict=True):
                line = {"study_id": study["study_id"], "model_prediction": report, "truncated": truncated}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            bar.update(len(batch))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The finished lines of a file that is appended to; a last line cut by a kill is not one."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]


def drop_cut_line(path: Path) -> None:
    """Remove a last line that a kill cut short, so that the next one is not appended to it."""
    if path.is_file():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)


def finish(
    out: Path, studies: Sequence[Mapping[str, Any]], made_by: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """Merge the finished lines into `predictions.json`, in the data's order, and record how they were made."""
    lines = {row["study_id"]: row for file in partials(out) for row in read_lines(file)}
    missing = [study["study_id"] for study in studies if study["study_id"] not in lines]
    if missing:
        raise EvaluationError(
            f"{out}: {len(missing)} studies have no report yet (first: {missing[0]}); run the command again"
        )
    write_json(
        out / "predictions.json",
        {s["study_id"]: rexrank_entry(s, lines[s["study_id"]]["model_prediction"]) for s in studies},
    )
    result = {
        "finished": True,
        "made_by": dict(made_by),
        "truncated": sum(lines[s["study_id"]]["truncated"] for s in studies),
        "empty": sum(not lines[s["study_id"]]["model_prediction"].strip() for s in studies),
        "seconds_of_last_run": round(seconds, 1),
    }
    write_json(out / "generation.json", result)
    for file in partials(out):
        file.unlink()
    if result["truncated"]:
        print(f"{result['truncated']} of {len(studies)} reports were cut at {made_by['max_new_tokens']} tokens")
    return result


def transformers_writer(model: str, settings: GenerationSettings) -> Writer:
    """Greedy generation with transformers, on a GPU where there is one."""
    import torch

    from recipes.models import load_model_and_processor

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network, processor = load_model_and_processor(model, settings.dtype, device)
    end = {processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id}

    def write(studies: Sequence[Mapping[str, Any]]) -> list[tuple[str, bool]]:
        texts = [
            processor.apply_chat_template(_prompt(s, settings), tokenize=False, add_generation_prompt=True)
            for s in studies
        ]
        images = [image for study in studies for image in open_images(study, settings)]
        inputs = processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt").to(device)
        with torch.inference_mode():
            # temperature, top_p and top_k are unset, because a checkpoint's sampling settings only cause warnings here.
            tokens = network.generate(
                **inputs,
                max_new_tokens=settings.max_new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
            )
        completions = tokens[:, inputs["input_ids"].shape[1] :]
        reports = processor.tokenizer.batch_decode(completions, skip_special_tokens=True)
        cut = [not end.intersection(row) for row in completions.tolist()]
        return [(report.strip(), truncated) for report, truncated in zip(reports, cut, strict=True)]

    return write


def vllm_writer(model: str, settings: GenerationSettings) -> Writer:
    """Greedy generation with vLLM (up to two images a prompt)."""
    try:
        from vllm import LLM, SamplingParams
    except ImportError as error:
        raise EvaluationError(f"engine vllm needs vLLM ({error}); install it, or set --engine transformers") from error
    from recipes.models import load_processor

    processor = load_processor(model)
    engine = LLM(model=model, dtype=settings.dtype, limit_mm_per_prompt={"image": 2, "video": 0})
    sampling = SamplingParams(temperature=0.0, max_tokens=settings.max_new_tokens)

    def write(studies: Sequence[Mapping[str, Any]]) -> list[tuple[str, bool]]:
        requests = [
            {
                "prompt": processor.apply_chat_template(
                    _prompt(s, settings), tokenize=False, add_generation_prompt=True
                ),
                "multi_modal_data": {"image": open_images(s, settings)},
            }
            for s in studies
        ]
        outputs = [request.outputs[0] for request in engine.generate(requests, sampling, use_tqdm=False)]
        return [(output.text.strip(), output.finish_reason == "length") for output in outputs]

    return write


def open_images(study: Mapping[str, Any], settings: GenerationSettings) -> list[Image.Image]:
    """The study's images in prompt order, as RGB.

    Raises:
        EvaluationError: a missing or unreadable file.
    """
    images = []
    for name in prompt_images(study, settings.longitudinal):
        path = Path(study["folder"]) / name
        prepare = study.get("prepare")  # ImageSettings, where the images are as they came and not a prepared folder's
        try:
            if prepare:
                images.append(resize(load_grey(path, prepare), prepare).convert("RGB"))
            else:
                with Image.open(path) as image:
                    images.append(image.convert("RGB"))
        except (OSError, ImageError, UnidentifiedImageError) as error:
            raise EvaluationError(f"study {study['study_id']}: cannot read image {path}: {error}") from error
    return images


def _prompt(study: Mapping[str, Any], settings: GenerationSettings) -> list[dict[str, Any]]:
    return build_prompt(study, settings.longitudinal, settings.context, _TEMPLATE[settings.sections])


def make_writer(model: str, settings: GenerationSettings) -> Writer:
    return (vllm_writer if settings.engine == "vllm" else transformers_writer)(model, settings)


def engine_here(settings: GenerationSettings) -> GenerationSettings:
    """`auto` as the engine it stands for here: vLLM where a GPU and vLLM are, else transformers."""
    if settings.engine != "auto":
        return settings
    from importlib.util import find_spec

    engine = "vllm" if _gpu_count() and find_spec("vllm") else "transformers"
    return replace(settings, engine=engine)


def _gpu_count() -> int:
    import torch

    return torch.cuda.device_count()


def check_images(studies: Sequence[Mapping[str, Any]], settings: GenerationSettings) -> None:
    """Name a missing image before the model is loaded."""
    for study in studies:
        for name in prompt_images(study, settings.longitudinal):
            if not (Path(study["folder"]) / name).is_file():
                raise EvaluationError(
                    f"study {study['study_id']}: image {Path(study['folder']) / name} is missing; prepare the data again"
                )


def generate_shard(
    model: str,
    data: Path,
    split: str,
    out: Path,
    settings: GenerationSettings,
    batch_size: int,
    max_studies: int | None,
    shard: int,
    shards: int,
) -> None:
    """One process's part of the studies: every `shards`-th, from `shard`."""
    studies = studies_of_data(data, split)[:max_studies][shard::shards]
    write_reports(studies, partial_path(out, shard), lambda: make_writer(model, settings), batch_size, partials(out))


def _on_each_gpu(
    workers: int,
    model: str,
    data: Path,
    split: str,
    out: Path,
    settings: GenerationSettings,
    batch_size: int,
    max_studies: int | None,
) -> None:
    """Data parallel: one process a GPU, each with its share of the studies."""
    flags = [
        "--model",
        model,
        "--data",
        str(data),
        "--split",
        split,
        "--out",
        str(out),
        "--batch_size",
        str(batch_size),
    ]
    for key, value in asdict(settings).items():
        flags += [f"--{key}", str(value)]
    if max_studies is not None:
        flags += ["--max_studies", str(max_studies)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(i) for i in range(workers)]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "evaluation", "generate", *flags, "--shard", f"{i}/{workers}"],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": devices[i]},
        )
        for i in range(workers)
    ]
    failed = [i for i, process in enumerate(running) if process.wait()]
    if failed:
        raise EvaluationError(f"generation failed on GPU {', '.join(devices[i] for i in failed)}; its message is above")
