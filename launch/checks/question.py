"""What the doctor asks, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

STAGES = ("data", "sft", "rl_step1", "rl_step2", "eval")
TRAINING = ("sft", "rl_step1", "rl_step2")


@dataclass(frozen=True)
class Check:
    """One thing that stages need.

    Attributes:
        status: ok, missing (its stages cannot run) or warning (they can, with what `found` says).
        mend: the command or change that mends it; empty where nothing is to be mended.
        stages: those that need it.
    """

    name: str
    status: str
    found: str
    mend: str = ""
    stages: tuple[str, ...] = STAGES


@dataclass(frozen=True)
class Question:
    """What is asked: a recipe on this machine.

    Attributes:
        recipes: stage → the keys of its YAML (flat); no stage where PyYAML is not installed.
        stage: the one stage that is to run, or None for all.
        gpus: of those here that train, or None for all.
        variant: of the recipe: <stage>_<variant>.yaml in place of <stage>.yaml.
    """

    recipe: str
    recipes: dict[str, dict[str, Any]]
    stage: str | None
    gpus: int | None
    data_dir: Path
    weights_dir: Path
    run: Path
    network: bool = True
    variant: str = ""
    parallel: str | None = None

    @property
    def own_run(self) -> bool:
        """Whether the run is the recipe's (and variant's) own, whose stages start where the YAML says."""
        return self.run.name == "_".join(filter(None, (self.recipe, self.variant)))

    def asked(self, stages: tuple[str, ...]) -> tuple[str, ...]:
        """Those of `stages` that are asked about."""
        return tuple(stage for stage in stages if self.stage in (None, stage))

    def stages_where(self, key: str, *values: Any) -> tuple[str, ...]:
        """The asked stages whose YAML gives `key` one of `values`."""
        return tuple(stage for stage in self.asked(STAGES) if self.recipes.get(stage, {}).get(key) in values)


def yaml_name(stage: str, variant: str = "") -> str:
    """File of a stage; the evaluation is looked at without its variants, which ask nothing else of a machine."""
    return f"{stage}_{variant}.yaml" if variant and stage in TRAINING else f"{stage}.yaml"
