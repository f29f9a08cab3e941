"""What a command may delete: what it wrote itself, by name, in a folder that it knows for its own. Nothing else, ever."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from foundation.errors import RecipeError
from foundation.locks import NAME as LOCK


def remove_own(folder: Path, own: Sequence[str], is_ours: bool, needed: Mapping[str, Path | str], how: str) -> None:
    """Remove what `own` (patterns, in this order) names in `folder`; other files stay.

    Args:
        is_ours: whether the folder says that the command wrote it.
        needed: what the command reads, by the setting that names it: a folder that holds any of it is left alone.
        how: the option that asks for it, for messages: `FORCE=1`.

    Raises:
        RecipeError: the folder is another's, holds what is needed, or something cannot be removed.
    """
    if not folder.is_dir():
        if folder.exists():
            raise RecipeError(f"{folder} is a file where a folder should be; move it away")
        return
    there = sorted(path.name for path in folder.iterdir() if path.name != LOCK)
    if not there:
        return
    if not is_ours:
        raise RecipeError(
            f"{folder} holds {there[0]} and nothing that says that this command wrote it, so {how} removes nothing there; "
            "check the path, or choose an empty folder"
        )
    inside = folder.resolve()
    for setting, path in needed.items():
        if str(path) and Path(path).exists() and Path(path).resolve().is_relative_to(inside):
            raise RecipeError(f"{setting} {path} lies in {folder}, which {how} would empty; choose another folder")
    try:
        for pattern in own:
            for path in sorted(folder.glob(pattern)):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as error:
        raise RecipeError(
            f"{error.filename or folder} cannot be removed ({error.strerror}); mend that and run the same command again"
        ) from error
