"""Uploading a finished stage's model to a Hugging Face hub: `final/` alone, once, private unless the recipe says otherwise.

The trainers' own push is never used: it uploads the whole stage folder, rollouts with references and prior reports included.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import httpx2
from accelerate import PartialState
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError
from transformers import TrainingArguments

from foundation.errors import RecipeError
from foundation.governance import is_open
from model.card import training_stages

# Model, configuration, tokenizer, processor and model card.
FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "README.md")


@dataclass(frozen=True)
class Upload:
    """What is pushed once a stage has finished.

    Attributes:
        folder: the stage's `final/`.
        repository: `owner/name` on the hub.
        private: what the repository is made as, and must be.
        revision: branch that is committed to; None for the default one.
    """

    folder: Path
    repository: str
    private: bool
    revision: str | None

    def prepare(self) -> None:
        """Make the repository, so that a missing login or right is known before training.

        Raises:
            RecipeError: it cannot be made, or is public and should not be.
        """
        try:
            api = HfApi()
            api.create_repo(self.repository, private=self.private, exist_ok=True)
            if self.private and not api.model_info(self.repository).private:
                raise RecipeError(
                    f"{self.repository} is a public repository; make it private, or say hub_private_repo: false"
                )
        except (httpx2.HTTPError, OSError, HFValidationError) as error:
            raise RecipeError(
                f"push_to_hub: cannot use {self.repository}: {_first_line(error)}; log in with HF_TOKEN, or set push_to_hub: false"
            ) from error

    def push(self) -> None:
        """Upload the model files of `folder`; the first process does.

        Raises:
            RecipeError: the upload failed; the model stays in `folder`, and the same command uploads it again.
        """
        if not PartialState().is_main_process:
            return
        try:
            HfApi().upload_folder(
                repo_id=self.repository,
                folder_path=self.folder,
                allow_patterns=list(FILES),
                revision=self.revision,
                commit_message="Model",
            )
        except (httpx2.HTTPError, OSError) as error:
            raise RecipeError(
                f"push_to_hub: uploading {self.folder} to {self.repository} failed: {_first_line(error)}; the stage has "
                "finished, and the same command uploads it again"
            ) from error
        print(f"{self.folder} uploaded to {self.repository} ({'private' if self.private else 'public'})", flush=True)


def open_upload(training: TrainingArguments, sources: set[str], start: str, allowed: list[str]) -> Upload | None:
    """What `push_to_hub: true` uploads, checked; the trainer's own push is switched off. None without that key.

    Args:
        sources: data sets that the stage trains on.
        start: the model that it starts from; data sets that this run trained it on count too.
        allowed: data sets that the user lists in hub_allow_datasets.

    Raises:
        RecipeError: no repository, no network, or a data set whose models the user has not allowed to be uploaded.
    """
    if not training.push_to_hub:
        return None
    training.push_to_hub = False
    if not training.hub_model_id or "/" not in training.hub_model_id:
        raise RecipeError("push_to_hub needs hub_model_id: owner/name")
    if closed := sorted(name for name in sources | trained_on(start) if not is_open(name) and name not in allowed):
        raise RecipeError(
            f"push_to_hub: a model trained on {', '.join(closed)} may hold what their data use agreements forbid to share; "
            f"set push_to_hub: false, or list them where yours allows it (hub_allow_datasets: [{', '.join(closed)}])"
        )
    if constants.HF_HUB_OFFLINE:
        raise RecipeError("push_to_hub: HF_HUB_OFFLINE is set, so nothing can be uploaded; unset one of them")
    folder = Path(training.output_dir) / "final"
    upload = Upload(folder, training.hub_model_id, training.hub_private_repo is not False, training.hub_revision)
    if PartialState().is_main_process:
        upload.prepare()
    return upload


def trained_on(model: str) -> set[str]:
    """Data sets that earlier stages trained `model` on, by the `settings.json` that each left beside its models."""
    return {name for _, settings in training_stages(model) for name in settings.get("datasets", [])}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
