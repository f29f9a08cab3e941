"""The form of the films goes with the data and with each checkpoint, and nothing shows a model films of another form."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import material
import pytest
from PIL import Image
from stage_runs import run_stage

from data_prep.__main__ import main as data_prep
from evaluation.generate import Task, generate
from foundation.errors import RecipeError
from inference import study_to_read
from model.engines import GenerationSettings
from model.films import FilmForm, check_form, common_form, form_of_data, form_of_model, write_form

REPOSITORY = Path(__file__).resolve().parents[2]
SQUARE, LONGEST = FilmForm("stretch", 96), FilmForm("longest", 96)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MIMIC-CXR prepared as it is by default, and with the films' own shape."""
    folder = tmp_path_factory.mktemp("films")
    made = material.mimic(folder / "source")
    for name, options in (("mimic", ()), ("own_shape", ("--image-mode", "longest"))):
        command = ["mimic", "--source", made.root, "--out", folder / name, "--workers", "1", "--image-size", "96"]
        assert data_prep([*map(str, command), "--validation-studies", "2", *options]) == 0
    return folder


def test_films_are_square_unless_asked_for_otherwise(data: Path) -> None:
    assert form_of_data(data / "mimic") == SQUARE
    assert form_of_data(data / "own_shape") == LONGEST
    for folder, square in (("mimic", True), ("own_shape", False)):
        for path in (data / folder / "images").rglob("*.jpg"):
            with Image.open(path) as image:
                assert (image.width == image.height == 96) is square


def test_one_stage_trains_on_one_form(data: Path) -> None:
    assert common_form([data / "mimic", data / "nothing there"]) == SQUARE
    with pytest.raises(
        RecipeError, match=r"films of mimic are stretch 96, those of own_shape longest 96; .*image-mode stretch"
    ):
        common_form([data / "mimic", data / "own_shape"])


def test_each_checkpoint_says_what_it_was_trained_on_and_is_shown_nothing_else(
    data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    run = tmp_path / "sft"
    command = ["recipes.sft", "--config", "recipes/demo/sft.yaml", "--data_dir", str(data)]
    command += ["--datasets", "mimic", "--dataset_weights", "1", "--model_name_or_path", str(tiny_base)]
    command += ["--output_dir", str(run), "--max_steps", "1", "--save_strategy", "steps", "--save_steps", "1"]
    done = run_stage(*command)
    assert done.returncode == 0, done.stderr[-2000:]
    assert form_of_model(run / "checkpoint-1") == form_of_model(run / "final") == SQUARE
    assert json.loads((run / "result.json").read_text())["settings"]["films"] == {"mode": "stretch", "size": 96}
    settings = GenerationSettings(max_new_tokens=2, engine="transformers")
    task = Task(str(run / "final"), data / "own_shape", "test", tmp_path / "out", settings)
    with pytest.raises(RecipeError, match=r"was trained on films of stretch 96, .*own_shape has longest 96"):
        generate(task)
    assert not (tmp_path / "out").exists()
    with pytest.raises(RecipeError, match="trained on films of stretch 96, the data has longest 96"):
        check_form(run / "final", common_form([data / "own_shape"]), "the data")  # what each stage asks of its start


def test_a_submission_shows_films_in_the_checkpoints_form(data: Path, tiny_base: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_base, model)
    assert form_of_model(model) is None
    write_form(model, LONGEST)
    assert form_of_model(model) == LONGEST
    Image.new("L", (300, 200)).save(tmp_path / "x.png")
    study = study_to_read({"study_id": "1", "image": "/x.png"}, tmp_path, LONGEST)
    assert (study["prepare"].mode, study["prepare"].size) == ("longest", 96)
