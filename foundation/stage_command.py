"""The settings that a stage's command gives: its recipe's YAML, overridden by its flags. Standard library and PyYAML only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foundation.errors import RecipeError
from foundation.machine import MachineError
from foundation.recipe_files import read_yaml


def settings_of(command: Sequence[str]) -> dict[str, Any]:
    """The YAML keys of a stage's command, overridden by its `--key value` flags. Values of flags stay text.

    Raises:
        MachineError: the YAML cannot be read.
    """
    settings: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    flags = [index for index, word in enumerate(command) if word.startswith("--")]
    for index in flags:
        name, _, value = command[index][2:].partition("=")
        following = command[index + 1] if index + 1 < len(command) else ""
        value = value or following
        if name == "config":
            try:
                recipe = read_yaml(Path(value)) | {"config": value}
            except RecipeError as error:
                raise MachineError(str(error)) from error
        else:
            settings[name] = value
    return recipe | settings


def process_flags(given: Any) -> list[str]:
    """The flags of `launch.stage` that choose the processes, of those that parsed arguments have."""
    names = ("processes", "gpus", "nodes", "parallel")
    return [part for name in names if getattr(given, name) for part in (f"--{name}", str(getattr(given, name)))]


def is_true(value: Any) -> bool:
    """YAML's true, or a flag's."""
    return value is True or str(value).lower() in ("true", "1", "yes")


def whole_number(settings: Mapping[str, Any], key: str, default: int, least: int = 1) -> int:
    """A whole number of the settings, `default` where they do not give it.

    Raises:
        MachineError: another value, or one below `least`.
    """
    value = settings.get(key)
    if value is None:
        return default
    try:
        number = int(str(value))
    except ValueError:
        number = least - 1
    if number < least:
        raise MachineError(f"{key} is {value!r}; it must be a whole number of at least {least}")
    return number
