"""JSON and YAML at which Python's readers end in other ways than "not JSON": one line from every reader, or it goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_prep.check import check_folder
from data_prep.folder import made_from_of, read_images
from data_prep.mapping import read_mapping
from data_prep.phantoms import prepare_phantoms
from data_prep.source import iterate_json, read_json
from data_prep.tables import iterate_table
from evaluation.__main__ import run as evaluation_run
from evaluation.browser import scored_lines
from evaluation.predictions import read_predictions
from evaluation.published import test_file_of as published_test_file
from evaluation.run_folder import _json
from evaluation.scores import Scores
from evaluation.scoring import priors_shown
from evaluation.submission import read_description
from foundation.errors import OneLineError, RecipeError
from foundation.errors import read_json as read_stage_json
from foundation.provenance import read_run
from foundation.recipe_files import read_yaml
from foundation.stage_command import settings_of
from foundation.weights_lock import read_lock
from launch.checks.weights import missing_weights
from launch.doctor import main as doctor_main
from launch.planning.recipe import architecture_of
from model.architectures import architecture
from model.check import _check_architecture
from model.checkpoint_files import _expected_bytes
from model.engines import model_length
from model.films import form_of_data, form_of_model
from recipes import tiny_model
from rewards.__main__ import main as rewards_main
from rewards.chexprompt.ratings import read_lines
from rewards.chexprompt.rubric import load_prompt
from rewards.metric import MetricError
from rewards.score import read_pairs
from settings.arguments import StageArguments
from settings.parser import parse_recipe

JSON = {"digits": "9" * 5000, "deep": "[" * 100_000, "cut": '{"a": ', "not text": "\udcff"}
YAML = {"digits": f"a: {'9' * 5000}", "deep": "[" * 1200, "no date": "a: 2024-13-45", "not text": "a: \udcff"}


def _browser_lines(path: Path) -> None:
    list(scored_lines(SimpleNamespace(models=["m"], folders={"m": {"d": path.parent}})))


# Reader of a path, by the name that the file has there.
REFUSED: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "predictions": ("predictions.json", read_predictions),
    "scores": ("scores.jsonl", Scores.read),
    "browser": ("scores.jsonl", _browser_lines),
    "generation": ("generation.json", lambda path: priors_shown(path.with_name("predictions.json"))),
    "history": ("log_history.json", _json),
    "stage": ("result.json", read_stage_json),
    "model": ("config.json", lambda path: model_length(str(path.parent))),
    "architecture": ("config.json", lambda path: architecture(str(path.parent))),
    "kind of model": ("config.json", lambda path: _check_architecture(path.parent)),
    "films": ("films.json", lambda path: form_of_model(path.parent)),
    "card": ("card.json", lambda path: check_folder(path.parent)),
    "record": ("card.json", lambda path: made_from_of(path.parent)),
    "phantoms": ("phantom_harbor/card.json", lambda path: prepare_phantoms(path.parent, "harbor", 1, {}, None, False)),
    "source": ("source.json", lambda path: read_json(path, dict)),
    "source, by entries": ("source.json", lambda path: list(iterate_json(path))),
    "table": ("table.jsonl", lambda path: list(iterate_table(path, ["a"]))),
    "run": ("run.json", lambda path: read_run(path.parent)),
    "lock": ("weights.lock.json", lambda path: read_lock(path.parent)),
    "pairs": ("pairs.jsonl", read_pairs),
    "ratings": ("ratings.jsonl", read_lines),
}
GOES_ON: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "weights": ("model.safetensors.index.json", lambda path: "damaged" not in missing_weights(path.parent)[0]),
    "published": ("card.json", lambda path: published_test_file(path.parent)),
    "form": ("card.json", lambda path: form_of_data(path.parent)),
    "images": ("images.jsonl", lambda path: len(read_images(path.parent))),
}
READ_YAML: dict[str, Callable[[Path], Any]] = {
    "recipe": read_yaml,
    "stage": lambda path: parse_recipe((StageArguments,), ["--config", str(path)]),
    "start": lambda path: settings_of(["--config", str(path)]),
    "plan": lambda path: architecture_of("of no folder", path.with_name("rl_step1.yaml")),
    "description": read_description,
    "mapping": read_mapping,
}


def written(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8", "surrogateescape") + b"\n")
    return path


def one_line(error: Exception) -> bool:
    """A mistake of the user's, as the commands tell it."""
    return isinstance(error, OneLineError | MetricError)


@pytest.mark.parametrize("kind", JSON)
@pytest.mark.parametrize("reader", REFUSED)
def test_json_that_is_none_is_named(reader: str, kind: str, tmp_path: Path) -> None:
    name, read = REFUSED[reader]
    path = written(tmp_path, name, JSON[kind])
    with pytest.raises(ValueError) as caught:  # ours are several classes, all of them ValueErrors
        read(path)
    assert one_line(caught.value)
    assert path.name in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("kind", JSON)
@pytest.mark.parametrize("reader", GOES_ON)
def test_a_file_that_only_adds_something_stops_nothing(reader: str, kind: str, tmp_path: Path) -> None:
    name, read = GOES_ON[reader]
    assert not read(written(tmp_path, name, JSON[kind]))


@pytest.mark.parametrize("kind", YAML)
@pytest.mark.parametrize("reader", READ_YAML)
def test_yaml_that_is_none_is_named(reader: str, kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, "sft.yaml", YAML[kind])
    with pytest.raises(ValueError) as caught:
        READ_YAML[reader](path)
    assert one_line(caught.value)
    assert path.name in str(caught.value)


@pytest.mark.parametrize("header", [b"9" * 5000, b"[" * 100_000])
def test_a_header_of_weights_that_is_none_has_no_size(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert _expected_bytes(path) is None


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    mark = "\ufeff"
    assert read_json(written(tmp_path, "a.json", mark + '{"a": 1}'), dict) == {"a": 1}
    assert list(iterate_json(tmp_path / "a.json")) == [("a", 1)]
    marked = load_prompt(written(tmp_path, "p.txt", mark + "Count errors."))
    plain = load_prompt(written(tmp_path / "plain", "p.txt", "Count errors."))
    assert marked.version == plain.version


@pytest.mark.parametrize(("name", "value"), [("seed", "-1"), ("vocabulary_size", "0"), ("image_size", "0")])
def test_a_wrong_number_for_the_tiny_model_is_one_line(name: str, value: str, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["", "--datasets", "d", "--output_dir", str(out), f"--{name}", value])
    with pytest.raises(RecipeError, match=f"--{name} is {value}"):
        tiny_model.main()
    assert not out.exists()


@pytest.mark.parametrize(
    "words",
    [
        ["judge-agreement", "a.jsonl", "b.jsonl", "--seed", "-1"],
        ["judge-cache", "prune", "--older-than", "-3"],  # would delete every paid answer
        ["judge-cache", "prune", "--older-than", "nan"],
    ],
)
def test_a_wrong_number_for_the_judges_commands_is_refused(words: list[str], monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["rewards", *words])
    with pytest.raises(SystemExit) as caught:
        rewards_main()
    assert caught.value.code == 2
    assert f"{words[-1]} is not 0 or more" in capsys.readouterr().err


def test_a_setting_of_the_judge_that_is_no_yaml_is_one_line(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        evaluation_run(["score", "--judge_timeout", "[1"])
    assert caught.value.code == 2
    assert "--judge_timeout" in capsys.readouterr().err


def test_fewer_than_no_gpus_is_one_line(capsys) -> None:
    assert doctor_main(["--recipe", "demo", "--gpus", "-1"]) == 2
    assert "--gpus -1" in capsys.readouterr().err
