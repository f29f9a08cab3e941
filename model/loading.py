"""Loading and saving a Qwen3-VL checkpoint and its processor, with or without torchvision."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedModel,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    TrainingArguments,
    dynamic_module_utils,
)
from transformers.integrations import deepspeed
from trl import ModelConfig

from common.errors import RecipeError, read_json
from common.files import write_json
from model.checkpoint_files import check_weight_files
from model.films import copy_form
from model.finite import check_finite_weights
from model.lora import merge_in_place
from model.merge_check import compared

dynamic_module_utils.TIME_OUT_REMOTE_CODE = (
    0  # a checkpoint with code of its own is refused; nothing asks on the terminal
)
PIECE = 4 << 20  # bytes of a weight file that are read at once, by each of
READERS = 8  # threads
MODEL_TYPE = Qwen3VLConfig.model_type  # `qwen3_vl`
BASE_FILE = "base_model.json"  # beside an adapter: the base that it was trained on, by `note_base`
MERGE_FILE = "merge.json"  # in a merged model's folder: of which adapter, and how far from it


class ImageQwen3VLProcessor(Qwen3VLProcessor):
    """Qwen3-VL's processor for images only.

    transformers' own also builds a video processor, which needs torchvision; chest X-rays are images, so this one loads any
    Qwen3-VL's files with or without torchvision. It tokenises images the same way, and saves what transformers' own loads:
    the name of its class in a checkpoint is `Qwen3VLProcessor`, as on the hub.
    """

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As the parent, under transformers' name, and the settings of a video processor: neither transformers' own processor
        nor vLLM loads a Qwen3-VL without them. `preprocessor_config.json` is where the hub's Qwen3-VL have the image settings."""
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        folder = Path(save_directory)
        for name in ("processor_config.json", "tokenizer_config.json"):
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            _write_settings(folder / name, {**content, "processor_class": Qwen3VLProcessor.__name__})
        images = self.image_processor
        shared = ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std")
        settings = {"video_processor_type": "Qwen3VLVideoProcessor", **{name: getattr(images, name) for name in shared}}
        _write_settings(folder / "video_preprocessor_config.json", settings)
        named = {"processor_class": Qwen3VLProcessor.__name__}
        _write_settings(folder / "preprocessor_config.json", images.to_dict() | named)
        return saved


def _write_settings(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_model_folder(path: str) -> None:
    """Raise `RecipeError` if `path` is meant as a local checkpoint and is not one. A hub name passes."""
    folder = Path(path)
    looks_local = folder.is_absolute() or path.startswith((".", "outputs", "weights")) or path.count("/") != 1
    if folder.is_dir():
        check_weight_files(folder)
        check_finite_weights(folder)
        if is_adapter(path):
            if not (folder / "adapter_model.safetensors").is_file():
                raise RecipeError(f"{path} has an adapter_config.json and no adapter_model.safetensors; save it again")
            check_model_folder(adapter_base(path))
            return
        if not (folder / "config.json").is_file():
            raise RecipeError(f"{path} is not a checkpoint (no config.json in it); check model_name_or_path")
        _check_architecture(folder)
        _check_tensors(str(folder), _file_states(folder))
    elif folder.name == "best":
        run = folder.parent.parent.name
        raise RecipeError(
            f"no {path}: the best checkpoint of {folder.parent.name} is not selected yet; make it with: "
            f"make select STAGE_NAME={folder.parent.name} {'RECIPE' if Path('recipes', run).is_dir() else 'RUN'}={run} "
            "(or name another checkpoint in model_name_or_path)"
        )
    elif looks_local:
        made_by = "fetch it with: make weights" if folder.parts[0] == "weights" else "run the stage that makes it first"
        raise RecipeError(f"no model in {path}; {made_by}, or set model_name_or_path")


def check_tensors(path: str, revision: str = "main") -> None:
    """Raise `RecipeError` unless the weights of a checkpoint are its model's own, by name and shape.

    transformers completes a model that lacks tensors, or has them under other names, with random weights. Nothing is
    read but the files' headers; a hub name is fetched first.
    """
    folder = Path(path)
    if folder.is_dir():
        _check_tensors(path, _file_states(folder))
    else:
        _check_tensors(path, (), revision)


@functools.lru_cache(maxsize=32)
def _check_tensors(path: str, states: tuple[Any, ...], revision: str = "main") -> None:
    """`states` are those of the files: what has changed since is checked again."""
    try:
        with whole_weights():
            _, found = AutoModelForImageTextToText.from_pretrained(
                path,
                device_map="meta",
                revision=revision,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                use_safetensors=True,
                trust_remote_code=False,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise RecipeError(f"cannot load the model of {path}: {_first_line(error)}") from error
    wrong = []
    if missing := sorted(found["missing_keys"]):
        wrong.append(f"lacks {len(missing)} tensors of its model ({missing[0]}, …)")
    if others := sorted(found["unexpected_keys"]):
        wrong.append(f"holds {len(others)} that its model does not have ({others[0]}, …)")
    for name, there, wanted in sorted(found["mismatched_keys"])[:1]:
        wrong.append(f"has {name} as {list(there)} and not {list(wanted)}")
    if wrong:
        raise RecipeError(
            f"{path} {' and '.join(wrong)}: it would be completed with random weights; fetch or save it again as "
            "transformers' Qwen3VLForConditionalGeneration does"
        )


@contextlib.contextmanager
def whole_weights() -> Iterator[None]:
    """Let a model be loaded whole by this process alone where DeepSpeed's ZeRO-3 would share it among all."""
    before = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = before


def is_adapter(path: str) -> bool:
    """Whether `path` is a folder with a LoRA adapter, which needs its base model."""
    return (Path(path) / "adapter_config.json").is_file()


def adapter_base(path: str) -> str:
    """The base model of the adapter in `path`, as its configuration names it.

    Raises:
        RecipeError: it names none.
    """
    base = read_json(Path(path) / "adapter_config.json").get("base_model_name_or_path")
    if not base:
        raise RecipeError(
            f"{path}/adapter_config.json names no base_model_name_or_path; write the base model's folder there"
        )
    return base


def note_base(folder: Path, base: str, dtype: torch.dtype) -> None:
    """Write what an adapter in `folder` needs to be the model that was trained: its base's fingerprint and dtype."""
    write_json(folder / BASE_FILE, {"sha256": model_fingerprint(base), "dtype": str(dtype).removeprefix("torch.")})


def merged_checkpoint(path: str) -> str:
    """`path`, or for an adapter the folder `merged` in it: base and adapter as one model, made where it is not there.

    A next stage starts from it with an adapter of its own; without that adapter it is the policy of this stage.
    """
    if not is_adapter(path):
        return path
    folder = Path(path).resolve() / "merged"
    state = PartialState()
    if state.is_main_process and not _is_merged_of(folder, path):
        shutil.rmtree(folder, ignore_errors=True)
        merge_adapter(path, folder)
    state.wait_for_everyone()
    return str(folder)


def _is_merged_of(folder: Path, adapter: str) -> bool:
    """Whether `folder` holds the merged model of the adapter as it and its base are now."""
    file = folder / MERGE_FILE
    return file.is_file() and read_json(file)["adapter_sha256"] == model_fingerprint(adapter)


@contextlib.contextmanager
def whole_model(path: str) -> Iterator[str]:
    """`path`, or for an adapter a folder with the whole model, for readers that take no adapter (vLLM).

    The merged model (16 GB of an 8 B model) lies beside the adapter's folder and goes with the last process of this machine
    that reads it. Where `merged_checkpoint` left one, that is taken and stays.
    """
    adapter = Path(path).resolve()
    if not is_adapter(path):
        yield path
        return
    if _is_merged_of(adapter / "merged", path):
        yield str(adapter / "merged")
        return
    folder = adapter.with_name(f".{adapter.name}.merged.{socket.gethostname()}")
    # Not beside the checkpoint: file systems that are shared by machines do not all have locks.
    lock = Path(tempfile.gettempdir(), f"unirg-{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}.lock")
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        while not folder.is_dir():
            fcntl.flock(held, fcntl.LOCK_EX)
            if not folder.is_dir():
                merge_adapter(path, folder)
            fcntl.flock(held, fcntl.LOCK_SH)
        try:
            yield str(folder)
        finally:
            with contextlib.suppress(BlockingIOError):  # another process reads it, and removes it
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            fcntl.flock(held, fcntl.LOCK_UN)  # a process that the reader forked may still have the file open


def merge_adapter(path: str, output_dir: Path) -> dict[str, Any]:
    """Write the base model of the adapter in `path`, with the adapter added to its weights, to `output_dir` (atomically).

    Returns:
        What `MERGE_FILE` holds: how far the merged model's log-probabilities are from those of base and adapter.

    Raises:
        RecipeError: as `load_merged`.
    """
    model, difference = load_merged(path)
    for left in output_dir.parent.glob(f".{output_dir.name}.*.tmp"):  # by a kill
        shutil.rmtree(left)
    temporary = output_dir.with_name(f".{output_dir.name}.{os.getpid()}.tmp")
    model.save_pretrained(temporary)
    load_processor(path).save_pretrained(temporary)
    copy_form(Path(path), temporary)
    record = {"adapter_sha256": model_fingerprint(path), **difference}
    write_json(temporary / MERGE_FILE, record)
    os.replace(temporary, output_dir)
    return record


def load_merged(path: str, device: str | torch.device = "cpu") -> tuple[PreTrainedModel, dict[str, Any]]:
    """Base and adapter as one model, in the dtype of the stage that trained them, and how far it is from the two.

    Raises:
        RecipeError: the base is not where the adapter says, or is another one than was trained; tensors of the adapter
            are missing; or the merged model is another policy, beyond rounding.
    """
    base, noted = adapter_base(path), Path(path) / BASE_FILE
    trained = read_json(noted) if noted.is_file() else {"sha256": None, "dtype": "auto"}
    if trained["sha256"] not in (None, model_fingerprint(base)):
        raise RecipeError(
            f"{base} is not the model that the adapter in {path} was trained on: its weights have changed since; put the "
            "earlier ones back, or train the adapter again"
        )
    with whole_weights():
        model = _with_adapter(load_model(base, trained["dtype"], device), path).eval()
    model, difference = compared(model, merge_in_place, load_processor(path), Path(path).resolve())
    print(f"{path} merged with {base}: {difference['summary']}", flush=True)
    return model, difference


def _with_adapter(model: PreTrainedModel, path: str) -> PeftModel:
    """`model` with the adapter of `path`, every tensor of which is there and has its place."""
    try:
        adapted = PeftModel.from_pretrained(model, path)
    except (OSError, ValueError, RuntimeError) as error:
        raise RecipeError(f"cannot load the adapter of {path}: {_first_line(error)}") from error
    wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    with safe_open(Path(path) / "adapter_model.safetensors", framework="pt") as file:
        there = set(file.keys())
    # Where embeddings are adapted, PEFT also saves the base's own.
    extra = {
        name
        for name in there - wanted
        if not name.endswith((".base_layer.weight", "embed_tokens.weight", "lm_head.weight"))
    }
    if wanted - there or extra:
        name = min(wanted - there or extra)
        raise RecipeError(
            f"{path}/adapter_model.safetensors and adapter_config.json do not belong together: {len(wanted - there)} "
            f"tensors are missing and {len(extra)} have no place ({name}, …); save the adapter again"
        )
    return adapted


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _check_architecture(folder: Path) -> None:
    """Raise `RecipeError` for the checkpoint of a model that is not a Qwen3-VL."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError, RecursionError) as error:
        raise RecipeError(f"{folder / 'config.json'} is not JSON ({error}); the checkpoint is damaged") from error
    if found != MODEL_TYPE:
        raise RecipeError(
            f"{folder} is a checkpoint of another model (model_type {found!r}, not {MODEL_TYPE!r}); "
            "set model_name_or_path to a Qwen3-VL"
        )


def load_processor(path: str, padding_side: str = "left", revision: str = "main") -> Qwen3VLProcessor:
    """The processor saved with a checkpoint.

    Raises:
        RecipeError: the folder's files do not make an image processor and a tokenizer.
    """
    check_model_folder(path)
    try:
        if (
            not Path(path).is_dir()
            and (found := AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False).model_type)
            != MODEL_TYPE
        ):
            raise RecipeError(
                f"{path} is another model (model_type {found!r}, not {MODEL_TYPE!r}); set model_name_or_path to a Qwen3-VL"
            )
        # By the model's type, not by the class that a file names: plain AutoProcessor wants torchvision for the hub's.
        return ImageQwen3VLProcessor.from_pretrained(path, padding_side=padding_side, revision=revision)
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot load the processor of {path}: {str(error).splitlines()[0]}") from error


def load_model(path: str, dtype: str | torch.dtype = "auto", device: str | torch.device = "cpu") -> PreTrainedModel:
    """The model of a checkpoint in evaluation mode, on `device`; an adapter's is the merged one, as a next stage has it.

    Raises:
        RecipeError: no such checkpoint, or its files cannot be loaded.
    """
    check_model_folder(path)
    if is_adapter(path):
        model, _ = load_merged(path, device)
        return (model if dtype == "auto" else model.to(dtype)).eval()
    check_tensors(path)
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            path, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot load the model of {path}: {_first_line(error)}") from error
    return model.to(device).eval()


def model_options(model: ModelConfig, training: TrainingArguments) -> dict[str, Any]:
    """How a trainer is to load its model: from safetensors, with no code but transformers' own; and as the user says."""
    return {
        **(training.model_init_kwargs or {}),
        "dtype": model.dtype,
        "attn_implementation": model.attn_implementation,
        "revision": model.model_revision,
        "use_safetensors": True,
        "trust_remote_code": False,
    }


def load_model_and_processor(
    path: str, dtype: str | torch.dtype = "auto", device: str | torch.device = "cpu"
) -> tuple[PreTrainedModel, Qwen3VLProcessor]:
    """Both, ready for batched greedy generation (left padding), whatever the checkpoint says of sampling."""
    model, processor = load_model(path, dtype, device), load_processor(path)
    generate_neutrally(model, processor)
    return model, processor


def end_tokens(processor: Qwen3VLProcessor) -> list[int]:
    """The tokens that end a report, with either engine: the turn's end and, which Qwen also ends texts with, padding."""
    return list(dict.fromkeys([processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id]))


def generate_neutrally(model: PreTrainedModel, processor: Qwen3VLProcessor) -> None:
    """Replace, in place, what the checkpoint's `generation_config.json` says of generation: greedy, no penalties, our ends.

    transformers would take penalties, forbidden repetitions, beams and the like from there, for greedy reports and for
    rollouts too, whose probabilities would then not be the policy's; vLLM takes none of them.
    """
    neutral = GenerationConfig(eos_token_id=end_tokens(processor), pad_token_id=processor.tokenizer.pad_token_id)
    vars(model.generation_config).clear()
    vars(model.generation_config).update(vars(neutral))


def model_fingerprint(path: str) -> str:
    """sha256 over the weight files of a local checkpoint (names and contents, sorted), or the hub name itself.

    An adapter's also covers its base, the dtype of its stage and its configuration: each makes another model.
    """
    folder = Path(path)
    return _fingerprint(path, _file_states(folder)) if folder.is_dir() else path


@functools.lru_cache(maxsize=32)
def _fingerprint(path: str, states: tuple[Any, ...]) -> str:
    """`states` are those of the files: what has changed since is read again."""
    folder = Path(path)
    digest = hashlib.sha256()
    for part in _read_ahead(sorted(folder.glob("*.safetensors"))):
        digest.update(part)
    if is_adapter(path):
        for name in ("adapter_config.json", BASE_FILE):
            digest.update((folder / name).read_bytes() if (folder / name).is_file() else b"")
        digest.update(model_fingerprint(adapter_base(path)).encode())
    return digest.hexdigest()


def _file_states(folder: Path) -> tuple[Any, ...]:
    """Name, size and time of change of the files that make a checkpoint's model, its base's included."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")])
    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns, file.stat().st_ino) for file in files]
    if is_adapter(str(folder)) and Path(base := adapter_base(str(folder))).is_dir():
        states += _file_states(Path(base))
    return tuple(states)


def _read_ahead(files: Sequence[Path]) -> Iterator[bytes]:
    """Each file's name, then its bytes; threads read the next pieces meanwhile, which a network disk needs to be fast."""
    pieces = iter([(file, start) for file in files for start in range(0, max(file.stat().st_size, 1), PIECE)])
    with ThreadPoolExecutor(READERS) as readers:
        reading = deque((file, start, readers.submit(_read, file, start)) for file, start in islice(pieces, READERS))
        while reading:
            file, start, piece = reading.popleft()
            reading.extend((*following, readers.submit(_read, *following)) for following in islice(pieces, 1))
            if start == 0:
                yield file.name.encode()
            yield piece.result()


def _read(file: Path, start: int) -> bytes:
    with file.open("rb") as stream:
        stream.seek(start)
        return stream.read(PIECE)
