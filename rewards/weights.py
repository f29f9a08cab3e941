"""Where metric weights are, how they are opened safely, and their fingerprints. `make weights` fetches them.

A weights folder holds, as `make weights` (launch/weights.py) lays it out:

    chexbert.pth                        StanfordAIMI/RRG_scorers
    radgraph.tar.gz, radgraph-xl.tar.gz StanfordAIMI/RRG_scorers (either or both)
    bert-base-uncased/                  configuration and vocabulary that CheXbert was trained with
    BiomedNLP-PubMedBERT-…/             configuration and vocabulary that RadGraph's config.json names
    distilroberta-base/                 the encoder of BERTScore
    RaTE-NER-Deberta/, BioLORD-2023-C/  the two models of RaTEScore
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from rewards.metric import MetricError

SCORERS = "StanfordAIMI/RRG_scorers"
RADGRAPH_MODELS = ("radgraph", "radgraph-xl", "modern-radgraph-xl")
# Small files only: CheXbert's and RadGraph's encoders are inside their own checkpoints.
_CONFIGURATION = ("config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
ENCODERS = {
    "bert-base-uncased": ("google-bert/bert-base-uncased", _CONFIGURATION),
    "BiomedNLP-PubMedBERT-base-uncased-abstract-fulltext": (
        "microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract-fulltext",
        _CONFIGURATION,
    ),
    "distilroberta-base": (
        "distilbert/distilroberta-base",
        ("config.json", "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "model.safetensors"),
    ),
}
# Whole checkpoints (configuration, tokenizer, safetensors): folder → repository.
RATESCORE_MODELS = {
    "RaTE-NER-Deberta": "Angelakeke/RaTE-NER-Deberta",
    "BioLORD-2023-C": "FremyCompany/BioLORD-2023-C",
}
_ARCHIVE_FILES = ("config.json", "weights.th")  # and vocabulary/*.txt


class WeightsError(MetricError):
    """Weights that are missing, damaged or of an unknown form. The message names the file and what mends it."""


def source_fingerprint(*modules: str) -> str:
    """sha256 over the source files of `modules`: the fingerprint of a metric whose rules are its only weights."""
    digest = hashlib.sha256()
    for module in modules:
        file = importlib.import_module(module).__file__
        assert file is not None
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def fingerprint(paths: Iterable[Path]) -> str:
    """sha256 over the contents of files, in the order given: what was loaded, wherever it lay."""
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        digest.update(_file_digest(path, stat.st_size, stat.st_mtime_ns))
    return digest.hexdigest()


@lru_cache(maxsize=64)
def _file_digest(path: Path, size: int, modified: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> bytes:  # Python 3.10
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.digest()


def require(folder: Path, name: str) -> Path:
    """`folder / name`, which must exist.

    Raises:
        WeightsError: it does not; the message has the command that fetches it.
    """
    path = folder / name
    if not path.exists():
        raise WeightsError(f"{path} is missing; fetch it with: make weights WEIGHTS_DIR={folder}")
    return path


def encoder_folder(folder: Path, model_name: str) -> Path:
    """The local folder of the encoder that a checkpoint names, e.g. `microsoft/BiomedNLP-PubMedBERT-…`.

    Only the last part of the name is used, so a checkpoint cannot point outside the weights folder.
    """
    name = PurePosixPath(model_name).name
    if name in ("", ".", ".."):
        raise WeightsError(f"{folder}: a checkpoint names the encoder {model_name!r}, which is no model name")
    return require(folder, name)


def load_state(path: Path) -> dict[str, Any]:
    """A checkpoint's tensors on the CPU; only tensors are unpickled (`weights_only`).

    Raises:
        WeightsError: it is damaged, or holds anything but tensors and plain values.
    """
    import pickle

    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} cannot be loaded ({reason}); remove it and fetch it again: make weights") from error


def load_pretrained(kind: Any, folder: Path, **options: Any) -> Any:
    """`kind.from_pretrained(folder)` of a transformers configuration or tokenizer, from local files alone.

    Raises:
        WeightsError: a file of it is missing or damaged.
    """
    from safetensors import SafetensorError

    try:
        for path in sorted(folder.glob("*.json")):  # tokenizers' own error for a cut file has no type of its own
            json.loads(path.read_text(encoding="utf-8"))
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except (OSError, RuntimeError, ValueError, KeyError, ImportError, SafetensorError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise WeightsError(
            f"{folder} cannot be loaded ({reason}); remove it and fetch it again: make weights"
        ) from error


def load_pretrained_model(kind: Any, folder: Path) -> Any:
    """As `load_pretrained` for a model, whose weights come from safetensors only.

    Raises:
        WeightsError: also where tensors of the model are not in the files: transformers would draw them at random. A pooler
            is not looked for; no metric uses one.
    """
    model, found = load_pretrained(kind, folder, use_safetensors=True, output_loading_info=True)
    if missing := sorted(key for key in found["missing_keys"] if not re.search(r"(^|\.)pooler\.", key)):
        raise WeightsError(
            f"{folder} lacks {len(missing)} tensors of its model ({missing[0]}, …); remove it and fetch it again: make weights"
        )
    return model


def radgraph_folder(folder: Path, model: str) -> Path:
    """The extracted RadGraph archive: `<model>/` if it is there, else `<model>.tar.gz` extracted beside it, once.

    Only config.json, weights.th and vocabulary/*.txt are taken, as plain files; a name that leaves the folder, a link
    or a device is refused. Extraction goes to a temporary folder that is renamed when it is whole.

    Raises:
        WeightsError: an unknown model, nothing there, or an archive that is damaged or unsafe.
    """
    if model not in RADGRAPH_MODELS:
        raise WeightsError(f"RadGraph model {model!r} is unknown; one of {', '.join(RADGRAPH_MODELS)}")
    extracted = folder / model
    if extracted.is_dir():
        for name in (*_ARCHIVE_FILES, "vocabulary"):
            if not (extracted / name).exists():
                raise WeightsError(
                    f"{extracted / name} is missing; remove {extracted} and run again with {model}.tar.gz"
                )
        return extracted
    archive = require(folder, f"{model}.tar.gz")
    temporary = Path(tempfile.mkdtemp(prefix=f".{model}.", dir=folder))
    try:
        _extract(archive, temporary)
        try:
            temporary.rename(extracted)
        except OSError:  # another process was first: its files are the same
            if not extracted.is_dir():
                raise
    except (tarfile.TarError, EOFError, OSError) as error:
        raise WeightsError(f"{archive} is not a readable archive ({error}); fetch it again: make weights") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return extracted


def _extract(archive: Path, target: Path) -> None:
    (target / "vocabulary").mkdir()
    found = set()
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            parts = [part for part in path.parts if part != "."]
            if path.is_absolute() or ".." in parts or not (member.isfile() or member.isdir()):
                raise WeightsError(f"{archive} has the unsafe member {member.name!r}; it was not extracted")
            vocabulary = len(parts) == 2 and parts[0] == "vocabulary" and parts[1].endswith(".txt")
            if not member.isfile() or not (vocabulary or (len(parts) == 1 and parts[0] in _ARCHIVE_FILES)):
                continue
            source = tar.extractfile(member)
            assert source is not None
            with source, target.joinpath(*parts).open("wb") as file:
                shutil.copyfileobj(source, file)
            found.add(parts[0])
    if missing := {*_ARCHIVE_FILES, "vocabulary"} - found:
        raise WeightsError(f"{archive} lacks {', '.join(sorted(missing))}; fetch it again: make weights")
