"""The one reader of recipe YAML files. A file may say `extends: FILE.yaml` and then only what differs from it.

python -m foundation.recipe_files recipes/unirg_cxr/sft_lora.yaml model_name_or_path
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from foundation.errors import RecipeError

EXTENDS = "extends"


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a recipe file, with those of the file that it extends, which it overrides.

    Raises:
        RecipeError: no such file, not a mapping, or files that extend each other in a circle.
    """
    settings: dict[str, Any] = {}
    for content in reversed([content for _, content in _chain(path)]):
        settings |= content
    settings.pop(EXTENDS, None)
    return settings


def files_of(path: Path) -> list[Path]:
    """The file, and those that it extends, the nearest first.

    Raises:
        RecipeError: as `read_yaml`.
    """
    return [one for one, _ in _chain(path)]


def _chain(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    chain = [(path, _read(path))]
    while EXTENDS in chain[-1][1]:
        last, content = chain[-1]
        base = content[EXTENDS]
        if not isinstance(base, str):
            raise RecipeError(f"{last}: extends is {base!r}; it names a YAML file, seen from this one's folder")
        following = last.parent / base
        if following.resolve() in [one.resolve() for one, _ in chain]:
            raise RecipeError(f"{last} extends {base}, which extends {last.name}; name another file")
        try:
            chain.append((following, _read(following)))
        except RecipeError as error:
            raise RecipeError(f"{last}: extends: {error}") from error
    return chain


def _read(path: Path) -> dict[str, Any]:
    import yaml  # the doctor runs where nothing is installed

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"no recipe file {path}; recipes are in recipes/<name>/") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none, digits without end
        raise RecipeError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path} must hold a mapping of keys to values")
    return content


def main() -> int:
    try:
        value = read_yaml(Path(sys.argv[1])).get(sys.argv[2])
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("" if value is None else value)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
