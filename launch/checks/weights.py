"""Are the base model and the metrics' weights here, whole, as they were fetched?"""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from foundation.machine import format_bytes
from launch.checks.packages import installed
from launch.checks.question import Check, Question


def _base_model(question: Question) -> str:
    return str(question.recipes.get("sft", {}).get("model_name_or_path", ""))


def check_base_model(question: Question) -> Iterator[Check]:
    """The model that SFT starts from: a folder, or a hub name that is in the weights folder or the hub's cache."""
    name = _base_model(question)
    stages = question.asked(("sft",))
    if not name or not stages:
        return
    local = next(
        (p for p in (Path(name), question.weights_dir / Path(name).name) if (p / "config.json").is_file()), None
    )
    if local is not None:
        size = sum(file.stat().st_size for file in local.glob("*.safetensors"))
        absent = missing_weights(local)
        unfinished = [] if absent else _unfinished(question.weights_dir, f"{local.name}/")
        if absent or unfinished:
            yield Check(
                "base model", "missing", f"{local}: {'; '.join([*absent, *unfinished][:3])}", "make weights", stages
            )
        else:
            fingerprint = _locked(question, local.name + "/")
            yield Check("base model", "ok", f"{local}, {format_bytes(size)}{fingerprint}", "", stages)
    elif question.recipe == "demo" or name.startswith("outputs/"):
        yield Check(
            "base model", "warning", f"{name} is not built yet; the stage builds it", "make base RECIPE=demo", stages
        )
    elif _in_hub_cache(name):
        yield Check("base model", "ok", f"{name}, in the hub's cache", "", stages)
    else:
        yield Check("base model", "missing", f"{name} is not on this machine", "make weights", stages)


def missing_weights(folder: Path) -> list[str]:
    """What a checkpoint lacks of its weights: the files that its index names, or `model.safetensors`."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [] if any(folder.glob("*.safetensors")) else ["no model.safetensors"]
    try:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        return [f"{index.name} is damaged ({error})"]
    return [f"{file} is not there" for file in files if not (folder / file).is_file()]


def _unfinished(folder: Path, prefix: str) -> list[str]:
    """What the lock file says of the files below `prefix`: a source that has not arrived as a whole, a file of other size."""
    from foundation.weights_lock import FetchError, problems, read_lock

    try:
        lock, found = read_lock(folder), [line for line in problems(folder) if line.startswith(prefix)]
    except FetchError as error:
        return [str(error)]
    arriving = {entry["repository"] for name, entry in lock.files.items() if name.startswith(prefix)}
    complete = {key.split(" ")[0] for key in lock.complete}
    return [*found, *(f"{name} has not arrived as a whole" for name in sorted(arriving - complete))]


def _in_hub_cache(name: str) -> bool:
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return False
    return name.count("/") == 1 and isinstance(try_to_load_from_cache(name, "config.json"), str)


def _locked(question: Question, prefix: str) -> str:
    from foundation.weights_lock import lock_fingerprint, read_lock

    if any(name.startswith(prefix) for name in read_lock(question.weights_dir).files):
        return f", fingerprint {lock_fingerprint(question.weights_dir, prefix)[:12]}"
    return ""


def check_metric_weights(question: Question) -> Iterator[Check]:
    """CheXbert, RadGraph and distilroberta where `reward_backend: real`; sizes as in the lock file."""
    stages = question.stages_where("reward_backend", "real")
    if not stages:
        if question.recipes and question.asked(("rl_step1", "rl_step2", "eval")):
            yield Check("metric weights", "ok", "none needed: the recipe scores with offline stand-ins")
        return
    from foundation.weights_lock import FetchError, lock_fingerprint, problems, read_lock
    from launch.weights import sources

    folder = question.weights_dir
    mend = f"make weights WEIGHTS_DIR={folder}"
    names = ("chexbert.pth", "bert-base-uncased/vocab.txt", "distilroberta-base/model.safetensors")
    missing = [name for name in names if not (folder / name).is_file()]
    if not (folder / "radgraph").is_dir() and not list(folder.glob("*radgraph*.tar.gz")):
        missing.append("radgraph.tar.gz")
    try:
        damaged = problems(folder)
        lock = read_lock(folder)
        locked = lock.files
    except FetchError as error:
        yield Check("metric weights", "missing", str(error), mend, stages)
        return
    if locked and not missing:
        metrics = sources(("chexbert", "bertscore", *(("radgraph",) if "radgraph.tar.gz" in locked else ())))
        damaged += [f"{s.repository} has not arrived as a whole" for s in metrics if s.key not in lock.complete]
    if missing or damaged:
        yield Check("metric weights", "missing", f"{folder}: " + "; ".join([*missing, *damaged][:4]), mend, stages)
    elif locked:
        yield Check("metric weights", "ok", f"{folder}, fingerprint {lock_fingerprint(folder)[:12]}", "", stages)
    else:
        yield Check("metric weights", "warning", f"{folder}: not fetched by make weights, sums unknown", mend, stages)


def check_ratescore(question: Question) -> Iterator[Check]:
    """RaTEScore's two models and its package, where the recipe watches it; elsewhere it is left out of the evaluation."""
    from rewards.weights import RATESCORE_MODELS

    folder = question.weights_dir
    lacking = [str(folder / name) for name in RATESCORE_MODELS if missing_weights(folder / name)]
    lacking += [] if installed("RaTEScore") else ["the package RaTEScore"]
    mend = f'make weights WEIGHTS_DIR={folder} ARGS="--only ratescore", and make setup'
    watching = question.stages_where("monitor_heldout", "ratescore")
    if watching:
        status = "missing" if lacking else "ok"
        yield Check("RaTEScore", status, ", ".join(lacking) or "there", mend if lacking else "", watching)
    elif question.stages_where("reward_backend", "real") and (stages := question.asked(("eval",))):
        found = f"{', '.join(lacking)}: not here, so it is left out of the scores" if lacking else "there"
        yield Check("RaTEScore (optional)", "warning" if lacking else "ok", found, mend if lacking else "", stages)


def check_judge_weights(question: Question) -> Iterator[Check]:
    """The weights of a judge that is served from this machine: what `make judge-server` takes, complete or not."""
    from foundation.governance import is_loopback

    values = question.recipes.get("rl_step2", {})
    url, model = str(values.get("judge_base_url") or ""), str(values.get("judge_model") or "")
    host = urllib.parse.urlsplit(url).hostname or ""
    if not question.asked(("rl_step2",)) or not is_loopback(host) or model.count("/") != 1:
        return
    folder = question.weights_dir / model.split("/")[1]
    mend = f'make weights WEIGHTS_DIR={question.weights_dir} ARGS="--only judge --judge_model {model}"'
    if not (folder / "config.json").is_file():
        found = f"not in {folder}: make judge-server would fetch {model} from the hub when it starts"
        yield Check("judge's weights", "warning", found, mend, ("rl_step2",))
    elif lacking := missing_weights(folder):
        yield Check("judge's weights", "missing", f"{folder}: {'; '.join(lacking[:4])}", mend, ("rl_step2",))
    else:
        yield Check("judge's weights", "ok", f"{folder}{_locked(question, folder.name + '/')}", "", ("rl_step2",))
