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

from evaluation.baselines import SUBSTITUTED, SUBSTITUTED_IDS
from evaluation.compare import judge_left_out, read_result, same_studies
from evaluation.published import not_rexranks_test
from evaluation.scores import Scores
from foundation.errors import EvaluationError, read_record
from settings.evaluations import BASELINES

MAIN = "eval"  # the recipe's own evaluation; those beside it are in eval_<sections>_<with or no>_priors
STAGES = ("base", "sft", "rl_step1", "rl_step2")


@dataclass(frozen=True)
class Common:
    """Scores of several models on the same studies.

    Attributes:
        scores: by model, one order of studies.
        beyond: how many studies each of them has that another has not.
        without: models that have none of these studies.
    """

    scores: Mapping[str, Scores]
    beyond: Mapping[str, int]
    without: Sequence[str]

    @property
    def studies(self) -> int:
        return len(next(iter(self.scores.values())).study_id) if self.scores else 0

    @property
    def patients(self) -> int:
        return len(set(next(iter(self.scores.values())).patient_id)) if self.scores else 0

    @property
    def datasets(self) -> list[str]:
        return sorted(set(next(iter(self.scores.values())).fields["dataset"])) if self.scores else []

    def described(self) -> dict[str, Any]:
        """What a table over these scores says of its studies."""
        return {
            "studies": self.studies,
            "patients": self.patients,
            "datasets": self.datasets,
            "left_out": {model: count for model, count in self.beyond.items() if count},
            "without": list(self.without),
            "judge_failed": judge_left_out(self.scores),
        }


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
    read: dict[Path, Scores] = field(default_factory=dict, compare=False, repr=False)  # files that were read already

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
    def apart(self) -> dict[str, str]:
        """Data sets that stand by themselves beside test studies, with the split that was evaluated: the validation split,
        by which the checkpoint was chosen. None where no data set has test studies."""
        splits = {name: self.split(name) for name in self.datasets}
        others = {name: split for name, split in splits.items() if split != "test"}
        return others if len(others) < len(splits) else {}

    @property
    def seen(self) -> list[str]:
        """The data sets that pooled numbers are over: trained on (or not known), and of test studies where any are."""
        return [name for name in self.datasets if name not in {*self.zero_shot, *self.apart}]

    @property
    def pooled_zero_shot(self) -> list[str]:
        """The zero-shot data sets that pooled numbers are over."""
        return [name for name in self.zero_shot if name not in self.apart]

    @property
    def pooled(self) -> list[str]:
        """The data sets of pooled numbers; the zero-shot ones where nothing else was evaluated."""
        return self.seen or self.pooled_zero_shot or self.datasets

    def split(self, dataset: str) -> str:
        """The split of a data set that was evaluated; `test` where the scores do not say."""
        folder = next(folders[dataset] for folders in self.folders.values() if dataset in folders)
        return self._read(folder / "scores.jsonl").fields["split"][0] or "test"

    def shown(self, datasets: Sequence[str]) -> list[str]:
        """Data sets for people, with what they are not: `ours (validation)`, `mimic (not ReXrank's test)`."""
        shown = []
        for name in datasets:
            split = self.split(name)
            mark = split if split != "test" else "not ReXrank's test" if self.not_rexranks_test(name) else ""
            shown.append(f"{name} ({mark})" if mark else name)
        return shown

    def not_rexranks_test(self, dataset: str) -> bool:
        """Whether a data set has a board, or the paper a figure, that the evaluated studies are not of."""
        return not_rexranks_test(self.result(dataset))

    def result(self, dataset: str) -> dict[str, Any]:
        """`scores.json` of a data set, of the first model that has it."""
        return read_result(
            next(self.folders[model][dataset] for model in self.models if dataset in self.folders[model])
        )

    @property
    def evaluation(self) -> dict[str, Any]:
        """What was asked and shown: sections, and whether priors were (None: not known, or not the same everywhere)."""
        made_by = [read_result(folder)["made_by"] for folders in self.folders.values() for folder in folders.values()]
        sections = {made["sections"] for made in made_by}
        priors = {made.get("longitudinal") for made in made_by} - {None}
        return {
            "sections": sections.pop() if len(sections) == 1 else None,
            "longitudinal": priors.pop() if len(priors) == 1 else None,
        }

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
        parts = [self._read(folders[name] / "scores.jsonl") for name in datasets if name in folders]
        return concatenate(parts) if parts else None

    def common(self, models: Sequence[str], datasets: Sequence[str]) -> Common:
        """The scores of several models over the studies of `datasets` that all of them have.

        A model that shares no study with the run's last one is left out, and named in `without`.

        Raises:
            EvaluationError: models were scored against different references of the same studies.
        """
        loaded = {model: found for model in models if (found := self.scores(model, datasets)) is not None}
        first = sorted(loaded, key=lambda m: (m in BASELINES, m not in STAGES, -models.index(m)))
        kept: dict[str, Scores] = {}
        shared: set[tuple[str, str]] = set()
        for model in first:
            studies = set(zip(loaded[model].fields["dataset"], loaded[model].study_id, strict=True))
            if not kept or studies & shared:
                kept[model], shared = loaded[model], (studies & shared if kept else studies)
        if not kept:
            return Common({}, {}, [])
        scores, beyond = same_studies({model: kept[model] for model in models if model in kept})
        return Common(scores, beyond, [model for model in models if model not in kept])

    def most_frequent_reports(self, model: str) -> dict[str, int]:
        """By data set, how many of a baseline's reports are really the most frequent one (no prior to copy, no indication to
        search by)."""
        found = {name: _generation(folder) for name, folder in self.folders_of(model).items()}
        return {name: count for name, made in found.items() if (count := made.get(SUBSTITUTED, 0))}

    def _read(self, path: Path) -> Scores:
        if path not in self.read:
            scores = Scores.read(path)
            if path.parent.name in BASELINES:
                given = set(_generation(path.parent).get(SUBSTITUTED_IDS, ()))
                scores.fields["most_frequent_report"] = [study in given for study in scores.study_id]
            self.read[path] = scores
        return self.read[path]

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


def beside(name: str) -> str:
    """The folder of an evaluation that is made beside the recipe's own."""
    return f"{MAIN}_{name}"


def evaluations(root: Path) -> list[str]:
    """The evaluations that a run has scores of, the recipe's own first."""
    scored = {path.parents[2].name for path in root.glob(f"{MAIN}*/*/*/scores.json")}
    return sorted(scored, key=lambda name: (name != MAIN, name))


def read_run(root: Path, evaluation: str = MAIN) -> Run:
    """One evaluation of a run. Raises EvaluationError where nothing in it has been scored."""
    folders: dict[str, dict[str, Path]] = {}
    for path in sorted((root / evaluation).glob("*/*/scores.json")):
        folders.setdefault(path.parent.name, {})[path.parent.parent.name] = path.parent
    if not folders:
        if not root.is_dir():
            runs = ", ".join(sorted(path.name for path in root.parent.glob("*/") if (path / "eval").is_dir())) or "none"
            raise EvaluationError(
                f"nothing in {root} has been scored: there is no such run; those with an evaluation: {runs}"
            )
        raise EvaluationError(
            f"nothing in {root}/{evaluation} has been scored; run: make eval RUN={root.name}, with the RECIPE that trained it"
        )
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


def _generation(folder: Path) -> dict[str, Any]:
    """`generation.json` of a scored folder; empty where another program wrote the predictions."""
    path = folder / "generation.json"
    return _json(path) if path.is_file() else {}


def _json(path: Path) -> Any:
    """The parsed file: a list of logs, or an object; of a stage's result also its settings."""
    if path.name == "log_history.json":
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError, RecursionError) as error:
            content = error
        if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
            raise EvaluationError(f"{path} is no list of logs; run the stage that makes it again with FORCE=1")
        return content
    keys = {"result.json": ("settings",), "selection.json": ("best", "checkpoints")}
    return read_record(path, *keys.get(path.name, ()))
