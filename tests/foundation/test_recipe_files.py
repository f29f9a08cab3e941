"""A recipe file that extends another: what it says, what it inherits, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from trl import ModelConfig

from foundation.errors import RecipeError
from foundation.recipe_files import files_of, read_yaml
from foundation.stage_command import settings_of
from settings.parser import parse_recipe


def write(folder: Path, **files: str) -> Path:
    """The files, each by its stem; the path of the last."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(content)
    return folder / f"{name}.yaml"


def test_a_file_overrides_what_it_extends_over_any_number_of_files(tmp_path: Path) -> None:
    write(tmp_path / "paper", base="use_peft: true\nlora_r: 8\nlora_alpha: 16\nmodel_name_or_path: a\n")
    path = write(
        tmp_path / "own",
        middle="extends: ../paper/base.yaml\nlora_alpha: 32\n",
        last="extends: middle.yaml\nmodel_name_or_path: b\n",
    )
    expected = {"use_peft": True, "lora_r": 8, "lora_alpha": 32, "model_name_or_path": "b"}
    assert read_yaml(path) == expected
    assert [one.name for one in files_of(path)] == ["last.yaml", "middle.yaml", "base.yaml"]
    assert settings_of(["--config", str(path), "--lora_r", "4"]) == expected | {"lora_r": "4", "config": str(path)}
    (model,) = parse_recipe((ModelConfig,), ["--config", str(path), "--lora_r", "4"])
    assert (model.lora_r, model.lora_alpha, model.model_name_or_path) == (4, 32, "b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("extends: nowhere.yaml", r"own\.yaml: extends: no recipe file .*nowhere\.yaml"),
        ("extends: [a.yaml]", r"own\.yaml: extends is \['a\.yaml'\]; it names a YAML file"),
        ("extends: other.yaml", r"other\.yaml extends own\.yaml, which extends other\.yaml"),
        ("extends: own.yaml", r"own\.yaml extends own\.yaml"),
        ("extends: .", r"own\.yaml: extends: .* cannot be read: Is a directory"),
    ],
)
def test_a_file_that_cannot_be_extended_is_named(content: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, other="extends: own.yaml", own=content)
    with pytest.raises(RecipeError, match=message):
        read_yaml(path)


def test_an_unknown_key_of_the_extended_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, base="lora_rr: 8", own="extends: base.yaml\ndtype: float32")
    with pytest.raises(RecipeError, match=r"unknown key\(s\) lora_rr"):
        parse_recipe((ModelConfig,), ["--config", str(path)])


def test_variables_of_the_environment_are_inherited_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNIRG_TEST_VARIABLE", raising=False)
    path = write(tmp_path, base="env: {UNIRG_TEST_VARIABLE: 7}", own="extends: base.yaml\ndtype: float32")
    program = "import os, sys; from trl import ModelConfig; from settings.parser import parse_recipe; "
    program += "parse_recipe((ModelConfig,), sys.argv[1:]); print(os.environ['UNIRG_TEST_VARIABLE'])"
    run = subprocess.run([sys.executable, "-c", program, "--config", str(path)], capture_output=True, text=True)
    assert run.stdout.strip() == "7", run.stderr
    with pytest.raises(RecipeError, match="env is 3"):
        parse_recipe((ModelConfig,), ["--config", str(write(tmp_path, wrong="env: 3"))])


def test_one_key_is_printed_for_make_and_slurm(tmp_path: Path) -> None:
    path = write(tmp_path, base="model_name_or_path: weights/a", own="extends: base.yaml")
    command = [sys.executable, "-m", "foundation.recipe_files", str(path)]
    assert subprocess.run([*command, "model_name_or_path"], capture_output=True, text=True).stdout == "weights/a\n"
    assert subprocess.run([*command, "seed"], capture_output=True, text=True).stdout == "\n"
    path.write_text("extends: nowhere.yaml")
    failed = subprocess.run([*command, "seed"], capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
