"""The form in which a model saw its films (size and shape), kept with prepared data and with each checkpoint.

A model trained on 512 × 512 pixels must not be shown films of another shape: whatever reads a film follows the checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data_prep.images import ImageSettings
from foundation.errors import RecipeError
from foundation.files import write_json

FILE = "films.json"  # beside a checkpoint's weights


@dataclass(frozen=True)
class FilmForm:
    """`mode` is one of data_prep.images.MODES; `size` in pixels; `format`, one of FORMATS there, makes no other form."""

    mode: str
    size: int
    format: str = field(default="jpg", compare=False)

    def __str__(self) -> str:
        return f"{self.mode} {self.size}"

    def recorded(self) -> dict[str, Any]:
        """The form as a file holds it; JPEG, which real films are prepared as, goes without saying."""
        return {"mode": self.mode, "size": self.size} | ({} if self.format == "jpg" else {"format": self.format})

    def settings(self) -> ImageSettings:
        """What prepares a film in this form."""
        return ImageSettings(self.size, self.mode, self.format)


PAPERS = FilmForm("stretch", 512)  # paper, Tasks: "each radiograph is resized to a resolution of 512×512 pixels"


def form_of_data(folder: Path) -> FilmForm | None:
    """The form of a prepared folder's images, by its card; None where it does not say."""
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(card, dict):
        return None
    options = card.get("made_from", {}).get("options", {})
    if "image_mode" in options:
        return FilmForm(options["image_mode"], options["image_size"], options.get("image_format", "jpg"))
    # Phantoms are drawn at their size: PNG, square, resized by nothing.
    return FilmForm("stretch", card["image_size"], "png") if "image_size" in card else None


def form_of_model(path: str | Path) -> FilmForm | None:
    """The form that a checkpoint was trained on; None where it does not say (a base model)."""
    file = Path(path) / FILE
    if not file.is_file():
        return None
    try:
        return FilmForm(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise RecipeError(f"{file} is not what a stage writes there ({error}); train the stage again") from error


def common_form(folders: Sequence[Path]) -> FilmForm | None:
    """The one form of several prepared folders; None where none says.

    Raises:
        RecipeError: they have different ones.
    """
    known = {folder.name: form for folder in folders if (form := form_of_data(folder)) is not None}
    for name, form in known.items():
        if form != (first := next(iter(known.values()))):
            raise RecipeError(
                f"the films of {next(iter(known))} are {first}, those of {name} {form}; prepare them alike "
                f'(make data DATASET={name} … ARGS="--image-mode {first.mode} --image-size {first.size}" FORCE=1)'
            )
    return next(iter(known.values()), None)


def check_form(model: str | Path, form: FilmForm | None, of: str) -> None:
    """Raise `RecipeError` where a checkpoint was trained on films of another form than `of` has; unknown forms pass."""
    trained = form_of_model(model)
    if trained is not None and form is not None and trained != form:
        raise RecipeError(
            f"{model} was trained on films of {trained}, {of} has {form}; prepare the data as the model saw it "
            f'(make data … ARGS="--image-mode {trained.mode} --image-size {trained.size}" FORCE=1)'
        )


def write_form(folder: Path, form: FilmForm | None) -> None:
    """Record `form` beside a checkpoint's weights; nothing for None."""
    if form is not None:
        write_json(folder / FILE, form.recorded())


def copy_form(source: Path, target: Path) -> None:
    """Take a checkpoint's record along, where it has one."""
    if (source / FILE).is_file():
        shutil.copy2(source / FILE, target / FILE)


class RecordForm(TrainerCallback):
    """Records the form in each checkpoint."""

    def __init__(self, form: FilmForm | None) -> None:
        self.form = form

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            write_form(folder, self.form)
