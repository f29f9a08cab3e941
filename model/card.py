"""README.md of a trained model, in the hub's form: where it comes from, whose terms hold, how to use it, what it scored."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from foundation.errors import read_json
from foundation.governance import is_open
from foundation.weights_lock import read_lock
from model.prompts import TEMPLATES

STAGE_NAMES = {"sft": "supervised fine-tuning", "rl_step1": "GRPO, step 1", "rl_step2": "GRPO, step 2 (with a judge)"}

_TRANSFORMERS = """\
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor  # Qwen3-VL's processor needs torchvision

before, after = {prompt!r}.split("{{input}}")
processor = AutoProcessor.from_pretrained({folder!r})
model = AutoModelForImageTextToText.from_pretrained({folder!r}, dtype="auto")
parts = [{{"type": "text", "text": before}}, {{"type": "image"}}, {{"type": "text", "text": after}}]
text = processor.apply_chat_template([{{"role": "user", "content": parts}}], tokenize=False, add_generation_prompt=True)
inputs = processor(text=[text], images=[Image.open("film.png").convert("RGB")], return_tensors="pt").to(model.device)
tokens = model.generate(**inputs, max_new_tokens=512, do_sample=False)
print(processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""
_VLLM = """\
from PIL import Image
from vllm import LLM, SamplingParams

before, after = {prompt!r}.split("{{input}}")
model = LLM({folder!r}, max_model_len=16384, limit_mm_per_prompt={{"image": 2, "video": 0}})
film = {{"type": "image_pil", "image_pil": Image.open("film.png").convert("RGB")}}
parts = [{{"type": "text", "text": before}}, film, {{"type": "text", "text": after}}]
answers = model.chat([{{"role": "user", "content": parts}}], SamplingParams(temperature=0, max_tokens=512))
print(answers[0].outputs[0].text)
"""


def training_stages(model: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The stages that trained `model`, last first: each one's folder, and the `settings.json` that it left there."""
    seen: set[Path] = set()
    while model:
        folder = Path(model).resolve().parent
        if folder in seen or not (folder / "settings.json").is_file():
            return
        seen.add(folder)
        settings = read_json(folder / "settings.json")
        yield folder, settings
        model = settings.get("model_name_or_path") or ""


def write_model_card(folder: Path, fingerprint: str) -> None:
    """Write `README.md` into a stage's `final/` or checkpoint (atomically), from the settings of the stages that trained it
    and the run's evaluations of this very model (`fingerprint`: its `model_fingerprint`)."""
    temporary = folder / f".README.md.{os.getpid()}.tmp"
    temporary.write_text(card_text(folder, fingerprint), encoding="utf-8")
    os.replace(temporary, folder / "README.md")


def card_text(folder: Path, fingerprint: str) -> str:
    """The card of the model in `folder`."""
    stages = list(training_stages(str(folder)))
    settings = stages[0][1] if stages else {}
    base = stages[-1][1].get("model_name_or_path", "") if stages else ""
    repository = hub_name(base)
    used = {
        (name, Path(stage.get("data_dir", "data"), name)): None
        for _, stage in reversed(stages)
        for name in stage.get("datasets", [])
    }
    stage = folder.resolve().parent
    how = [f"{STAGE_NAMES.get(where.name, where.name)} on {', '.join(s['datasets'])}" for where, s in reversed(stages)]
    lines = [
        "---",
        _metadata(repository, [name for name, _ in used]),
        "---",
        "",
        f"# {stage.parent.name} {stage.name}",
        "",
        "Writes the report of a frontal chest X-ray. For research: not a medical device, and no report of it may be used "
        "without a radiologist.",
        "",
        f"Base model: {repository or f'`{Path(base).name}`, not of the hub'}. Trained by {', then '.join(how) or 'stages not recorded'}.",
        "",
        "## Data sets and their terms",
        "",
        *[_terms(name, prepared) for name, prepared in used],
        "",
        "A model may repeat what it was trained on: what these terms forbid of the data holds for this model and its reports.",
        "",
        "## Prompt",
        "",
        *_prompts(settings),
        "",
        "## Use",
        "",
        "```python",
        example(_TRANSFORMERS, folder.name).rstrip(),
        "```",
        "",
        "```python",
        example(_VLLM, folder.name).rstrip(),
        "```",
        "",
        "## Scores",
        "",
        *_scores(stage.parent, fingerprint),
        "",
    ]
    return "\n".join(lines)


def _metadata(base: str | None, datasets: list[str]) -> str:
    """The head of the card, which the hub reads: `base` is a model of the hub, or None."""
    return ModelCardData(
        base_model=base,
        base_model_relation="finetune" if base else None,
        datasets=datasets or None,
        language="en",
        library_name="transformers",
        license="other",
        license_name="that-of-the-base-model-and-of-the-data-sets",
        pipeline_tag="image-text-to-text",
        tags=["radiology", "chest-x-ray", "report-generation", "trl"],
    ).to_yaml()


def _prompts(settings: dict[str, Any]) -> list[str]:
    """What a prompt of these settings shows, and the template of each choice of sections."""
    shown = ["the current film"]
    shown += ["indication and comparison"] if settings.get("context", True) else []
    shown += ["the prior film and report, where there are both"] if settings.get("longitudinal", True) else []
    return [
        f"`{{input}}` is {'; '.join(shown)}: the film's place, then ` Indication: … Comparison: …` (an absent one left out), "
        "then ` Prior image: ` with its place and ` Prior report: …`. Films are grey, at most 512 pixels a side. Which sections "
        "are written is chosen by the prompt:",
        "",
        *[f"- {' and '.join(sections)}: `{template}`" for sections, template in TEMPLATES.items()],
    ]


def example(code: str, folder: str) -> str:
    """One of the two examples, for a model that lies in `folder`."""
    return code.format(prompt=TEMPLATES["findings", "impression"], folder=folder)


def hub_name(model: str) -> str | None:
    """`owner/name` of a model on the hub: as it is named, or as `make weights` noted where it fetched it; None of others."""
    folder = Path(model)
    if not folder.is_dir():
        return model if model.count("/") == 1 and not model.startswith((".", "outputs/", "weights/")) else None
    noted = read_lock(folder.parent).files.get(f"{folder.name}/config.json")
    return noted["repository"] if noted else None


def _terms(name: str, folder: Path) -> str:
    """One line on a data set: its title and licence by its data card, and whether its terms close it."""
    path = folder / "card.json"
    card = read_json(path) if path.is_file() else {}
    licence = card.get("licence") or card.get("source") or "licence not stated"
    closed = not is_open(name) or card.get("credentialed")
    forbidden = (
        " Neither its reports and films nor a model trained on them may be passed on without leave." if closed else ""
    )
    return f"- **{name}**{f' ({title})' if (title := card.get('title')) else ''}: {licence.rstrip('.')}.{forbidden}"


def _scores(run: Path, fingerprint: str) -> list[str]:
    """A table of what the run has evaluated of this model, with 95% intervals; one line where there is nothing."""
    rows = []
    for generation in sorted((run / "eval").glob("*/*/generation.json")):
        scores = generation.with_name("scores.json")
        if read_json(generation)["made_by"].get("model_sha256") == fingerprint and scores.is_file():
            metrics = read_json(scores)["metrics"].items()
            rows += [f"| {scores.parent.parent.name} | {metric} | {_interval(value)} |" for metric, value in metrics]
    if not rows:
        return ["Not evaluated yet (`make eval`)."]
    told = "Greedy reports. Means with 95% intervals, bootstrapped over patients; `[offline…]` marks stand-ins of a metric."
    return [told, "", "| data set | metric | mean |", "|---|---|---|", *sorted(set(rows))]


def _interval(value: dict[str, Any]) -> str:
    mean, low, high = (value[key] for key in ("mean", "low", "high"))
    return "–" if mean is None else f"{mean:.3f} [{low:.3f}, {high:.3f}]" if low is not None else f"{mean:.3f}"
