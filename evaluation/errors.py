"""A user's mistake in the evaluation, told in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recipes.errors import RecipeError, read_json


class EvaluationError(RecipeError):
    """What was found, where, and how to mend it: one line, shown without a stack trace."""


def read_record(path: Path, *keys: str) -> dict[str, Any]:
    """`read_json`, its mistakes the evaluation's."""
    try:
        return read_json(path, *keys)
    except EvaluationError:
        raise
    except RecipeError as error:
        raise EvaluationError(str(error)) from error
