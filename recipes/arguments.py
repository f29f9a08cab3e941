"""Our settings beside TRL's: flat YAML keys, each also a command-line flag; and the one reader of recipe YAML."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from trl import TrlParser

from recipes.errors import RecipeError

REWARD_BACKENDS = ("real", "offline")


@dataclass
class DataArguments:
    """What is trained on, and what a prompt shows."""

    datasets: list[str] = field(
        default_factory=list, metadata={"help": "Prepared data sets (folders in data_dir) to train on."}
    )
    data_dir: str = field(default="data", metadata={"help": "Folder that holds the prepared data sets."})
    dataset_weights: list[float] = field(
        default_factory=list,
        metadata={"help": "Studies of each data set to use, as a multiple of its size (1 = each once). Default: all 1."},
    )
    longitudinal: bool = field(default=True, metadata={"help": "Show the prior image and report where a study has them."})
    context: bool = field(default=True, metadata={"help": "Show indication and comparison."})
    train_split: str = field(default="train", metadata={"help": "Split that is trained on."})


@dataclass
class RewardArguments:
    """The composite reward: a weighted sum of metrics (paper, Optimization), and where their weights lie."""

    reward_backend: str = field(
        default="real", metadata={"help": "real (CheXbert, RadGraph, RoBERTa weights) or offline (rule stand-ins)."}
    )
    weights_dir: str = field(default="weights", metadata={"help": "Folder of the metric weights (make weights)."})
    weight_bleu2: float = field(default=0.0, metadata={"help": "Weight of BLEU-2."})
    weight_bertscore: float = field(default=0.0, metadata={"help": "Weight of BERTScore."})
    weight_sembscore: float = field(default=0.0, metadata={"help": "Weight of SembScore."})
    weight_radgraph: float = field(default=0.0, metadata={"help": "Weight of RadGraph-F1 (combined)."})
    weight_radcliq_v1: float = field(default=0.0, metadata={"help": "Weight of RadCliQ-v1; negative, as lower is better."})
    weight_chexprompt: float = field(default=0.0, metadata={"help": "Weight of 1/(CheXprompt errors + 1)."})
    weights_total: float | None = field(
        default=None, metadata={"help": "What the weights should sum to; a different sum is refused before training."}
    )

    def __post_init__(self) -> None:
        if self.reward_backend not in REWARD_BACKENDS:
            raise RecipeError(f"reward_backend is {self.reward_backend!r}; choose one of {', '.join(REWARD_BACKENDS)}")
        total = sum(self.metric_weights.values()) + self.weight_chexprompt
        if self.weights_total is not None and abs(total - self.weights_total) > 1e-9:
            raise RecipeError(f"the reward weights sum to {total:g}, but weights_total says {self.weights_total:g}")

    @property
    def metric_weights(self) -> dict[str, float]:
        """Weight by metric name, the judge's left out. A weight of 0 stays: that metric is logged, not optimised."""
        names = ("bleu2", "bertscore", "sembscore", "radgraph", "radcliq_v1")
        weights = {name: getattr(self, f"weight_{name}") for name in names}
        if not weights["radcliq_v1"]:
            del weights["radcliq_v1"]
        return weights


@dataclass
class StageArguments:
    """What holds for every training stage."""

    force: bool = field(default=False, metadata={"help": "Train again where this stage has finished."})


def parse_recipe(dataclass_types: tuple[type, ...], arguments: list[str] | None = None) -> tuple[Any, ...]:
    """Read `--config recipe.yaml` and command-line overrides into the given dataclasses.

    Raises:
        RecipeError: no such file, not a YAML mapping, an unknown key or flag, or a value that does not fit.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    path = _config_path(arguments)
    parser = TrlParser(dataclass_types)
    if path:
        _check_yaml(path, {action.dest for action in parser._actions} | {"env"})
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return parser.parse_args_and_config(arguments)
    except RecipeError:
        raise
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        reason = message.getvalue().strip().splitlines()[-1].split("error: ")[-1]
        raise RecipeError(f"{path or 'command line'}: {reason}") from None
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"{path or 'command line'}: {' '.join(str(error).split())}") from error


def _config_path(arguments: list[str]) -> str | None:
    if "--config" not in arguments:
        return None
    index = arguments.index("--config") + 1
    if index == len(arguments):
        raise RecipeError("--config needs a YAML file")
    return arguments[index]


def _check_yaml(path: str, known: set[str]) -> None:
    """Name the file and the key of a YAML mistake before any parsing hides it."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"no recipe file {path}; recipes are in recipes/<name>/") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path} must hold a mapping of keys to values")
    if unknown := sorted(str(key) for key in set(content) - known):
        raise RecipeError(f"{path}: unknown key(s) {', '.join(unknown)}; see the recipe's comments, or --help, for the names")
