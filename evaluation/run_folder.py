"""What a run has evaluated, read together.

The run's own models are in `outputs/<run>/eval/<dataset>/<model>/`, its comparisons (`make ablation NAME=…`) in
`outputs/<run>/ablations/<name>/eval/<dataset>/<name>/`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.baselines import BASELINES
from evaluation.compare import read_result
from evaluation.errors import EvaluationError
from evaluation.score import Scores

STAGES = ("base", "sft", "rl_step1", "rl_step2")


@dataclass(frozen=True)
class Run:
    """The scored folders of a run.

    Attributes:
        folders: model → data set → folder with scores.jsonl and scores.json.
        trained_on: data sets of the run's training stages; empty where no stage says.
        ablations: the same as `folders` for each evaluated comparison, by its name.
    """

    root: Path
    folders: Mapping[str, Mapping[str, Path]]
    trained_on: frozenset[str]
    ablations: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)

    @property
    def models(self) -> list[str]:
        """Training stages in their order, then others by name, baselines last."""
        order = [*STAGES, *sorted(set(self.folders) - {*STAGES, *BASELINES}), *BASELINES]
        return [name for name in order if name in self.folders]

    @property
    def datasets(self) -> list[str]:
        return sorted({dataset for by_dataset in self.folders.values() for dataset in by_dataset})

    @property
    def zero_shot(self) -> list[str]:
        """Data sets evaluated but not trained on; none where the training data is not known."""
        return [name for name in self.datasets if self.trained_on and name not in self.trained_on]

    @property
    def seen(self) -> list[str]:
        return [name for name in self.datasets if name not in self.zero_shot]

    def described(self, model: str, dataset: str | None = None) -> dict[str, Any]:
        """Backends and fingerprints of a model's scores (`made_by.scorers`).

        Raises:
            EvaluationError: they differ between the model's data sets, so that its scores cannot be pooled.
        """
        all_described = [
            read_result(folder)["made_by"]["scorers"]
            for name, folder in self.folders_of(model).items()
            if dataset in (None, name)
        ]
        if any(other != all_described[0] for other in all_described):
            raise EvaluationError(f"{model} was scored by different backends on different data sets; score them alike")
        return all_described[0]

    def scores(self, model: str, datasets: Sequence[str]) -> Scores | None:
        """A model's scores pooled over those of `datasets` that it has; None where it has none."""
        folders = self.folders_of(model)
        parts = [Scores.read(folders[name] / "scores.jsonl") for name in datasets if name in folders]
        return concatenate(parts) if parts else None

    def folders_of(self, model: str) -> Mapping[str, Path]:
        """Data set → folder, of a model or of a comparison."""
        return self.folders[model] if model in self.folders else self.ablations[model]

    def data_folder(self, dataset: str, data_dir: Path | None = None) -> Path | None:
        """The prepared folder of a data set: in `data_dir` if given, else where it was when it was scored, if anywhere."""
        if data_dir is not None:
            return data_dir / dataset
        results = (read_result(folders[dataset]) for folders in self.folders.values() if dataset in folders)
        return next((Path(result["data"]) for result in results if result.get("data")), None)

    def stage_files(self, name: str) -> dict[str, Any]:
        """`<stage>/<name>` of each training stage that has it, parsed."""
        found = {}
        for path in sorted(self.root.glob(f"*/{name}")):
            found[path.parent.name] = _json(path)
        return {stage: found[stage] for stage in [*STAGES, *sorted(set(found) - set(STAGES))] if stage in found}

    def ablation_files(self, name: str) -> dict[str, Any]:
        """`<name>` of the last stage of each comparison that has it, parsed."""
        found = {}
        for folder in sorted((self.root / "ablations").glob("*")):
            paths = [path for stage in STAGES if (path := folder / stage / name).is_file()]
            if paths:
                found[folder.name] = _json(paths[-1])
        return found

    def root_file(self, name: str) -> Any:
        """A JSON file of the run's folder, or None where it is absent."""
        path = self.root / name
        return _json(path) if path.is_file() else None


def read_run(root: Path) -> Run:
    """Raises EvaluationError where nothing in `root` has been scored."""
    folders: dict[str, dict[str, Path]] = {}
    for path in sorted((root / "eval").glob("*/*/scores.json")):
        folders.setdefault(path.parent.name, {})[path.parent.parent.name] = path.parent
    if not folders:
        raise EvaluationError(f"nothing in {root}/eval has been scored; run: make eval RECIPE={root.name}")
    ablations: dict[str, dict[str, Path]] = {}
    for path in sorted((root / "ablations").glob("*/eval/*/*/scores.json")):
        name, model = path.parents[3].name, path.parent.name
        if model == name and name not in folders:  # beside it are the baselines, which the run has too
            ablations.setdefault(name, {})[path.parent.parent.name] = path.parent
    trained: set[str] = set()
    for path in root.glob("*/result.json"):
        settings = _json(path).get("settings", {})
        trained.update(settings.get("datasets") or [])
    return Run(root, folders, frozenset(trained), ablations)


def concatenate(parts: Sequence[Scores]) -> Scores:
    """Scores of several data sets as one; only metrics and labels that all have are kept."""

    def together(name: str) -> dict[str, np.ndarray]:
        columns = [getattr(part, name) for part in parts]
        return {key: np.concatenate([c[key] for c in columns]) for key in columns[0] if all(key in c for c in columns)}

    judged = all(part.significant is not None for part in parts)
    return Scores(
        [key for part in parts for key in part.study_id],
        [key for part in parts for key in part.patient_id],
        {name: [value for part in parts for value in part.fields[name]] for name in Scores.FIELDS},
        together("metrics"),
        together("labels"),
        np.concatenate([part.significant for part in parts]) if judged else None,
        np.concatenate([part.insignificant for part in parts]) if judged else None,
        [cause for part in parts for cause in part.failures] if judged else [],
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise EvaluationError(
            f"{path} is not JSON ({error}); run the stage that makes it again with FORCE=1"
        ) from error
