"""Are the data and the stages before here?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from launch.checks.question import STAGES, Check, Question


def check_data(question: Question) -> Iterator[Check]:
    """Each prepared data set that a stage of the recipe reads, with the split it reads."""
    reads: dict[tuple[str, str], list[str]] = {}
    for stage in question.asked(STAGES):
        values = question.recipes.get(stage, {})
        split = values.get("split", "test") if stage == "eval" else values.get("train_split", "train")
        for name in [*(values.get("datasets") or []), *(values.get("zero_shot_datasets") or [])]:
            reads.setdefault((name, split), []).append(stage)
    for (name, split), stages in reads.items():
        status, found, mend = _table(question.data_dir / name, split)
        yield Check(f"data {name}/{split}", status, found, mend, tuple(stages))


def _table(folder: Path, split: str) -> tuple[str, str, str]:
    """Status, what was found and what mends it, of one split of a prepared folder."""
    path, name = folder / f"{split}.parquet", folder.name
    mend = f"make data DATASET={name} SOURCE=/path/to/{name}"
    if name.startswith("phantom_"):
        mend = "make demo-data RECIPE=demo"
    if not path.is_file():
        return "missing", f"no {path}", mend
    import pyarrow
    import pyarrow.parquet as pq

    try:
        rows = pq.read_metadata(path).num_rows
    except (pyarrow.ArrowInvalid, OSError) as error:
        return "missing", f"{path} cannot be read: {error}", f"{mend} FORCE=1"
    if rows == 0 and split == "test":
        return "warning", "no studies; its validation split is evaluated instead", ""
    return ("ok", f"{rows:,} studies", "") if rows else ("missing", f"{path} has no studies", mend)


def check_earlier_stage(question: Question) -> Iterator[Check]:
    """The model of the stage before, where one stage is asked about."""
    if question.stage not in ("rl_step1", "rl_step2"):
        return
    name = str(question.recipes.get(question.stage, {}).get("model_name_or_path", ""))
    if not question.own_run:
        name = str(question.run / ("sft/final" if question.stage == "rl_step1" else "rl_step1/best"))
    mend = f"make {'sft' if question.stage == 'rl_step1' else 'rl-step1'} RECIPE={question.recipe}"
    mend += f" VARIANT={question.variant}" if question.variant else ""
    mend += "" if question.own_run else f" RUN={question.run.name}"
    if (Path(name) / "config.json").is_file():
        yield Check("earlier stage", "ok", name, "", (question.stage,))
    else:
        yield Check("earlier stage", "missing", f"no model in {name}", mend, (question.stage,))
