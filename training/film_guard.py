"""Does the policy still look at the film? A guard of RL that is off unless `monitor_min_film_effect` sets a limit.

At each save the policy writes greedy reports of validation studies, with the right film and with another patient's of the same
data set and view. A text that changes proves nothing (a random model's does, too): what is watched is how far micro-F1 of the 14
conditions, against the right report, falls with the wrong film, as `looks_at_film` of an evaluation. Below the limit at
`SAVES` saves in a row, the run stops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data_prep.study import read_studies
from foundation.errors import RecipeError, read_json
from foundation.files import write_json
from model.changed_studies import other_films
from model.prompts import study_report
from rewards.conditions import Labeler
from rewards.label_f1 import label_f1
from training.monitors import RolloutMonitors
from training.processes import in_first_process
from training.progress import announce
from training.trainers import RolloutTrainer
from training.validation import Greedy, write_in_shares

STUDIES = 64  # our choice
SAVES = 2  # our choice: 64 studies say it within about ±0.07, so that one save alone may be chance
LIMIT = "monitor_min_film_effect"
FILE = "film_effect.json"  # in the stage's folder: what was measured, by step


def guarded_studies(greedy: Greedy, most: int = STUDIES) -> list[dict[str, Any]]:
    """Pairs of studies, at most `most` and evenly over the data sets: each with its film, then with another patient's.

    Raises:
        RecipeError: no validation study has another patient's film of its view beside it.
    """
    pairs = []
    for number, folder in enumerate(greedy.data):
        share = most // len(greedy.data) + (number < most % len(greedy.data))
        rows = [{**row, "folder": str(folder)} for row in read_studies(folder, greedy.split).to_pylist()]
        rows = [row for row in rows if study_report(row)]
        own = {row["study_id"]: row for row in rows}
        changed = sorted(other_films(rows), key=lambda row: row["study_id"])[:share]
        pairs += [(own[row["study_id"]], row) for row in changed]
    if not pairs:
        told = f"no {greedy.split} study of {', '.join(str(folder) for folder in greedy.data)}"
        raise RecipeError(f"{LIMIT}: {told} has another patient's film beside it; set it to null")
    named = [
        {**study, "study_id": f"{film}/{place}"}
        for place, pair in enumerate(pairs)
        for film, study in zip(("own", "other"), pair, strict=True)
    ]
    return named


def film_effect(
    own: Sequence[str], other: Sequence[str], references: Sequence[str], labeler: Labeler
) -> dict[str, float]:
    """Of reports with the right film and with another's: `effect`, the fall of micro-F1 (−1 to 1), and the share `unchanged`."""
    labels = labeler.label([*own, *other, *references])
    right, wrong, wanted = np.split(np.asarray(labels), 3)
    effect = label_f1(right, wanted)["micro_14"] - label_f1(wrong, wanted)["micro_14"]
    unchanged = float(np.mean([a == b for a, b in zip(own, other, strict=True)]))
    return {"effect": effect, "unchanged": unchanged}


class FilmGuard(TrainerCallback):
    """Measures at each save, and stops the run. To be added before the run starts, in all processes."""

    def __init__(self, trainer: RolloutTrainer, greedy: Greedy, monitors: RolloutMonitors) -> None:
        self.trainer, self.greedy, self.monitors = trainer, greedy, monitors
        self.limit = monitors.settings.monitor_min_film_effect
        self.studies = guarded_studies(greedy)
        self.path = Path(trainer.args.output_dir) / FILE

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if control.should_training_stop and state.global_step < state.max_steps:
            return control  # told to stop, soon perhaps by force
        lines = write_in_shares(self.trainer, self.greedy, self.studies)
        records = in_first_process(lambda: self._record(state.global_step, lines))
        last = records[-1]
        Trainer.log(self.trainer, {"monitor/film_effect": last["effect"], "monitor/film_unchanged": last["unchanged"]})
        announce(
            f"{self.path.parent.name} step {state.global_step} · another patient's film: micro-F1 falls by "
            f"{last['effect']:.3f}, {last['unchanged']:.0%} of {last['studies']} reports unchanged"
        )
        recent = [record["effect"] for record in records[-SAVES:]]
        if len(recent) == SAVES and all(effect < self.limit for effect in recent):
            what = "reports no longer depend on the film: the fall of micro-F1 with another patient's film"
            self.monitors.stop(state, LIMIT, last["effect"], self.limit, what)
            control.should_training_stop = True
        return control

    def _record(self, step: int, lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """All that was measured up to `step`, which is added; what a run did before it went back to a checkpoint is dropped."""
        reports = {line["study_id"]: line["model_prediction"] for line in lines}
        number = len(self.studies) // 2
        own, other = ([reports[f"{film}/{place}"] for place in range(number)] for film in ("own", "other"))
        references = [study_report(study) for study in self.studies[::2]]
        measured = film_effect(own, other, references, self.monitors.labeler)
        before = read_json(self.path, "saves")["saves"] if self.path.is_file() else []
        saves = [record for record in before if record["step"] < step]
        saves.append({"step": step, "studies": number, **measured})
        write_json(self.path, {"limit": self.limit, "saves": saves})
        return saves
