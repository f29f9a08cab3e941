"""A user's mistake in the evaluation, told in one line."""

from __future__ import annotations

from recipes.errors import RecipeError


class EvaluationError(RecipeError):
    """What was found, where, and how to mend it: one line, shown without a stack trace."""
