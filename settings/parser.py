"""The one reader of recipe YAML: `--config recipe.yaml` and the flags that override it."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from trl import TrlParser

from foundation.errors import RecipeError
from foundation.recipe_files import read_yaml
from settings.keys import check_keys
from settings.values import check_values


class _RecipeParser(TrlParser):
    where = "command line"
    flags: Sequence[str] = ()

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        # TRL refuses a generation without whole groups of rollouts before `set_global_batch` can say how large it is; until
        # then it has as many steps as a group has rollouts, which fits any batch.
        given, rest = super().parse_known_args(*args, **kwargs)
        keys = ("global_batch_size", "steps_per_generation", "generation_batch_size")
        if "num_generations" in given and [getattr(given, key, None) is None for key in keys] == [False, True, True]:
            given.steps_per_generation = given.num_generations
        check_values(vars(given), self.dataclass_types, self.where, self.flags)
        return given, rest


def parse_recipe(dataclass_types: tuple[type, ...], arguments: list[str] | None = None) -> tuple[Any, ...]:
    """Read `--config recipe.yaml` and command-line overrides into the given dataclasses.

    Raises:
        RecipeError: no such file, not a YAML mapping, an unknown key or flag, or a value that does not fit.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    path = _config_path(arguments)
    arguments, nulls = _without_nulls(arguments)
    parser = _RecipeParser(dataclass_types)
    parser.flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    if path:
        parser.where = path
        recipe = read_yaml(Path(path))
        _set_environment(path, recipe.pop("env", {}))
        _check_yaml(path, recipe, {action.dest for action in parser._actions})
        parser.set_defaults_with_config(**recipe)
        del arguments[(at := arguments.index("--config")) : at + 2]
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            parsed = parser.parse_args_into_dataclasses(arguments)
    except RecipeError:
        raise
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        reason = message.getvalue().strip().splitlines()[-1].split("error: ")[-1]
        raise RecipeError(f"{path or 'command line'}: {reason}") from None
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"{path or 'command line'}: {' '.join(str(error).split())}") from error
    check_keys(parsed)
    return tuple(_with_nulls(part, nulls) for part in parsed)


def _without_nulls(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command line without its judge flags of `null`, and their names: argparse has no word for none, a YAML file has."""
    left, nulls = [], []
    words = list(arguments)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name.startswith("--judge_") and (value == "null" if equals else words[:1] == ["null"]):
            nulls.append(name.removeprefix("--"))
            del words[: 0 if equals else 1]
        else:
            left.append(word)
    return left, nulls


def _with_nulls(part: Any, nulls: Sequence[str]) -> Any:
    own = {name: None for name in nulls if is_dataclass(part) and name in {f.name for f in fields(part)}}
    return replace(part, **own) if own else part


def _config_path(arguments: list[str]) -> str | None:
    if "--config" not in arguments:
        return None
    index = arguments.index("--config") + 1
    if index == len(arguments):
        raise RecipeError("--config needs a YAML file")
    return arguments[index]


def _set_environment(path: str, variables: Any) -> None:
    """TRL's `env` key: variables of the process."""
    if not isinstance(variables, dict):
        raise RecipeError(f"{path}: env is {variables!r}; it maps names of environment variables to values")
    os.environ.update({str(name): str(value) for name, value in variables.items()})


def _check_yaml(path: str, content: Mapping[str, Any], known: set[str]) -> None:
    """Name the file and the key of a YAML mistake before any parsing hides it."""
    if unknown := sorted(str(key) for key in set(content) - known):
        raise RecipeError(
            f"{path}: unknown key(s) {', '.join(unknown)}; see the recipe's comments, or --help, for the names"
        )
