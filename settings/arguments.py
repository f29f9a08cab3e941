"""Our settings beside TRL's: flat YAML keys, each also a command-line flag; and the one reader of recipe YAML."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from foundation.errors import RecipeError
from settings.evaluations import evaluation_named
from settings.llm_metrics import SETTINGS_HELP, check_names, named_settings, named_weights

REWARD_BACKENDS = ("real", "offline")
CHANGE_LABELS = ("auto", "rules", "judge")


@dataclass
class DataArguments:
    """What is trained on, and what a prompt shows."""

    datasets: list[str] = field(
        default_factory=list, metadata={"help": "Prepared data sets (folders in data_dir) to train on."}
    )
    data_dir: str = field(default="data", metadata={"help": "Folder that holds the prepared data sets."})
    dataset_weights: list[float] = field(
        default_factory=list,
        metadata={
            "help": "Studies of each data set to use, as a multiple of its size (1 = each once). Default: all 1."
        },
    )
    longitudinal: bool = field(
        default=True, metadata={"help": "Show the prior image and report where a study has them."}
    )
    context: bool = field(default=True, metadata={"help": "Show indication and comparison."})
    train_split: str = field(default="train", metadata={"help": "Split that is trained on."})


@dataclass
class RewardArguments:
    """The composite reward: a weighted sum of metrics (paper, Optimization), and where their weights lie."""

    reward_backend: str = field(
        default="real", metadata={"help": "real (CheXbert, RadGraph, RoBERTa weights) or offline (rule stand-ins)."}
    )
    weights_dir: str = field(default="weights", metadata={"help": "Folder of the metric weights (make weights)."})
    score_cache_dir: str | None = field(
        default="outputs/score_cache",
        metadata={
            "help": "Folder of what the metrics' models found (real backend): rollouts that a resumed run makes again cost "
            "no forward pass. On several nodes each has a folder of its own in it. null for none."
        },
    )
    weight_bleu2: float = field(default=0.0, metadata={"help": "Weight of BLEU-2."})
    weight_bertscore: float = field(default=0.0, metadata={"help": "Weight of BERTScore."})
    weight_sembscore: float = field(default=0.0, metadata={"help": "Weight of SembScore."})
    weight_radgraph: float = field(default=0.0, metadata={"help": "Weight of RadGraph-F1 (combined)."})
    weight_sembscore_labels: float = field(
        default=0.0,
        metadata={"help": "Weight of SembScore from CheXbert's 14 labels, the paper's words, in place of its vectors."},
    )
    weight_radcliq_v1: float = field(
        default=0.0, metadata={"help": "Weight of RadCliQ-v1; negative, as lower is better."}
    )
    weight_chexprompt: float = field(default=0.0, metadata={"help": "Weight of 1/(CheXprompt errors + 1)."})
    weight_radeval: dict[str, float] | str | None = field(
        default=None,
        metadata={
            "help": 'Weights of RadEval\'s own rewards by name, e.g. {"bleu": 0.1, "f1chexbert:f1chexbert_sample_acc_5": 0.2}; '
            "needs radeval installed."
        },
    )
    weight_llm_metrics: dict[str, float] | str | None = field(
        default=None,
        metadata={
            "help": 'Weights of metrics of language models by name, e.g. {"green": 0.2, "crimson": 0.1, "radmatch": 0.1}; each '
            "needs its package, whose prompt it asks with."
        },
    )
    llm_metric_settings: dict[str, Any] | str | None = field(default=None, metadata={"help": SETTINGS_HELP})
    reward_normalize_parts: bool = field(
        default=False,
        metadata={
            "help": "Normalise each part within a study's rollouts before the weighted sum; with scale_rewards: batch."
        },
    )
    weights_total: float | None = field(
        default=None, metadata={"help": "What the weights should sum to; a different sum is refused before training."}
    )

    def __post_init__(self) -> None:
        if self.reward_backend not in REWARD_BACKENDS:
            raise RecipeError(f"reward_backend is {self.reward_backend!r}; choose one of {', '.join(REWARD_BACKENDS)}")
        self.weight_radeval = named_weights("weight_radeval", self.weight_radeval)
        self.weight_llm_metrics = named_weights("weight_llm_metrics", self.weight_llm_metrics)
        check_names("weight_llm_metrics", self.weight_llm_metrics or {})
        self.llm_metric_settings = named_settings(self.llm_metric_settings)
        llm_weights = {f"llm_metrics ({name})": weight for name, weight in (self.weight_llm_metrics or {}).items()}
        weights = {**self.metric_weights, "chexprompt": self.weight_chexprompt, **llm_weights}
        if wrong := [name for name, weight in weights.items() if not isfinite(weight)]:
            raise RecipeError(f"weight_{wrong[0]} is {weights[wrong[0]]}; it must be a finite number")
        if not any(weights.values()):
            raise RecipeError(
                "every reward weight is 0: nothing to learn from; set weight_bertscore, weight_radgraph, …"
            )
        total = sum(weights.values())
        if self.weights_total is not None and abs(total - self.weights_total) > 1e-9:
            raise RecipeError(f"the reward weights sum to {total:g}, but weights_total says {self.weights_total:g}")

    @property
    def score_cache(self) -> Path | None:
        """The folder of this node's cache: SQLite's log cannot be shared by nodes."""
        if not self.score_cache_dir:
            return None
        nodes = os.environ.get("WORLD_SIZE", "1") != os.environ.get("LOCAL_WORLD_SIZE", "1")
        return Path(self.score_cache_dir, socket.gethostname() if nodes else "")

    @property
    def metric_weights(self) -> dict[str, float]:
        """Weight by metric name, the judge's left out. A weight of 0 stays: that metric is logged, not optimised."""
        names = ("bleu2", "bertscore", "sembscore", "radgraph")
        others = ("sembscore_labels", "radcliq_v1")  # not logged where they are not optimised
        weights = {name: getattr(self, f"weight_{name}") for name in (*names, *others)}
        own = {name: weight for name, weight in weights.items() if name in names or weight}
        return own | {f"radeval:{name}": weight for name, weight in (self.weight_radeval or {}).items()}


@dataclass
class EvaluationArguments:
    """What is evaluated, how its reports are generated, and how they are scored."""

    datasets: list[str] = field(
        default_factory=list, metadata={"help": "Prepared data sets (folders in data_dir) to evaluate on."}
    )
    zero_shot_datasets: list[str] = field(
        default_factory=list, metadata={"help": "Data sets that training never saw, evaluated beside `datasets`."}
    )
    only_dataset: str | None = field(
        default=None, metadata={"help": "Evaluate, and select checkpoints, on this data set alone."}
    )
    data_dir: str = field(default="data", metadata={"help": "Folder that holds the prepared data sets."})
    split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    validation_datasets: list[str] = field(
        default_factory=list,
        metadata={"help": "Data sets whose validation split selects checkpoints; default: datasets."},
    )
    validation_split: str = field(default="validation", metadata={"help": "Split that checkpoints are selected on."})
    validation_studies: int | None = field(
        default=None, metadata={"help": "Use only this many validation studies of each data set."}
    )
    sections: str = field(
        default="available",
        metadata={"help": "available (those the reference has), findings_impression or findings (ReXrank's boards)."},
    )
    reference_form: str = field(
        default="raw", metadata={"help": "raw: references keep their line breaks, as ReXrank scores; or single_spaced."}
    )
    missing_section: str = field(
        default="None",
        metadata={"help": "What stands for a missing section: None (ReXrank's script) or None. (its files)."},
    )
    longitudinal: bool = field(
        default=True, metadata={"help": "Show the prior image and report where a study has them."}
    )
    also: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Further evaluations of the same models, each in a folder of its own beside eval/: findings_impression, "
            "findings or available, with _with_priors or _no_priors (findings_no_priors, …); none for none."
        },
    )
    context: bool = field(default=True, metadata={"help": "Show indication and comparison."})
    batch_size: int = field(default=16, metadata={"help": "Studies generated at once."})
    max_new_tokens: int = field(default=512, metadata={"help": "A longer report is cut there, and counted."})
    engine: str = field(
        default="auto", metadata={"help": "vllm, transformers, or auto: vllm where a GPU and vLLM are."}
    )
    metrics: list[str] = field(
        default_factory=lambda: ["bleu2", "bertscore", "sembscore", "radgraph", "radcliq_v1"],
        metadata={"help": "Metrics to score."},
    )
    llm_metrics: list[str] = field(
        default_factory=list,
        metadata={"help": "Metrics of language models to score: green, crimson, radmatch; each needs its package."},
    )
    llm_metric_settings: dict[str, Any] | str | None = field(default=None, metadata={"help": SETTINGS_HELP})
    change_labels: str = field(
        default="auto",
        metadata={
            "help": "What labels change in the references: rules, judge (its language model; the paper has GPT-5), or auto: the judge "
            "where judge_base_url names one, else rules. Results say which."
        },
    )
    baselines: list[str] = field(
        default_factory=lambda: ["most_frequent", "copy_prior"],
        metadata={"help": "Baselines to score beside the models."},
    )
    reward_backend: str = field(
        default="real", metadata={"help": "real (CheXbert, RadGraph, RoBERTa weights) or offline (rule stand-ins)."}
    )
    weights_dir: str = field(default="weights", metadata={"help": "Folder of the metric weights (make weights)."})
    run: str = field(default="outputs/demo", metadata={"help": "The run's folder."})
    models: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Models to evaluate: stages of the run (base, sft, rl_step1, rl_step2) or name=path. Default: its last."
        },
    )
    force: bool = field(default=False, metadata={"help": "Do finished work again."})

    def __post_init__(self) -> None:
        self.llm_metrics = [] if self.llm_metrics == ["none"] else self.llm_metrics
        check_names("llm_metrics", self.llm_metrics)
        self.llm_metric_settings = named_settings(self.llm_metric_settings)
        if self.change_labels not in CHANGE_LABELS:
            raise RecipeError(f"change_labels is {self.change_labels!r}; choose one of {', '.join(CHANGE_LABELS)}")
        self.also = [] if self.also == ["none"] else self.also
        for name in self.also:
            try:
                evaluation_named(name)
            except ValueError as error:
                raise RecipeError(str(error)) from None
        if self.only_dataset:
            self.datasets, self.zero_shot_datasets, self.validation_datasets = [self.only_dataset], [], []


@dataclass
class StageArguments:
    """What holds for every training stage."""

    force: bool = field(default=False, metadata={"help": "Train again where this stage has finished."})
    global_batch_size: int | None = field(
        default=None,
        metadata={"help": "Batch of one optimiser step over all processes; sets gradient_accumulation_steps."},
    )
    keep_optimizer_states: int | None = field(
        default=None,
        metadata={
            "help": "Checkpoints, the newest, that keep what training resumes from; older ones keep their model alone. "
            "Default: all."
        },
    )
    keep_best: int | None = field(
        default=None,
        metadata={
            "help": "RL stages: checkpoints kept beside the newest, the best by 1/RadCliQ-v1 of greedy validation reports, which "
            "the policy writes at each save. Default: all are kept, none is rated while training."
        },
    )
    validation_datasets: list[str] = field(
        default_factory=list,
        metadata={"help": "Of the validation of keep_best and monitor_min_film_effect. Default: datasets."},
    )
    validation_split: str = field(default="validation", metadata={"help": "With either: their split."})
    validation_studies: int | None = field(
        default=None, metadata={"help": "With keep_best: only this many studies of each of them."}
    )
    validation_sections: str = field(
        default="available", metadata={"help": "With either: as `sections` in eval.yaml, which make select reads."}
    )
    validation_batch_size: int = field(
        default=16, metadata={"help": "With either: studies generated at once where transformers generates."}
    )
    checkpoint_above_tokens: int | None = field(
        default=None,
        metadata={
            "help": "With gradient_checkpointing: forward passes of at most so many tokens, SFT's or those of shared prompts, do "
            "without, all processes alike. Default: none does."
        },
    )
    pack_studies: bool = field(
        default=False,
        metadata={
            "help": "SFT: the studies of a forward pass are one row without padding, each by itself: same loss, same gradients."
        },
    )
    hub_allow_datasets: list[str] = field(
        default_factory=list,
        metadata={
            "help": "With push_to_hub: data sets that are not public and whose models may be uploaded all the same."
        },
    )

    def __post_init__(self) -> None:
        if self.global_batch_size is not None and self.global_batch_size < 1:
            raise RecipeError(f"global_batch_size is {self.global_batch_size}; it must be at least 1")
        if self.keep_optimizer_states is not None and self.keep_optimizer_states < 1:
            raise RecipeError(f"keep_optimizer_states is {self.keep_optimizer_states}; it must be at least 1, or null")
        for name in ("keep_best", "checkpoint_above_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise RecipeError(f"{name} is {getattr(self, name)}; it must be at least 1, or null")


@dataclass
class RolloutArguments:
    """How "global batch size" is read in RL, and how often a generation is used."""

    batch_counts: str = field(
        default="prompts",
        metadata={"help": "What global_batch_size counts: prompts (× num_generations completions) or completions."},
    )
    updates_per_generation: int = field(
        default=1,
        metadata={
            "help": "Optimiser steps that reuse one generation (with global_batch_size). 1 is on-policy, where the "
            "policy ratio is 1 and clipping, low or high, never acts."
        },
    )
    vllm_trusted_hosts: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Hosts, besides this machine, whose vLLM server may receive films and prompts of credentialed studies "
            "(vllm_mode: server)."
        },
    )
    vllm_native_adapters: bool = field(
        default=False,
        metadata={
            "help": "LoRA with colocated vLLM: it holds the base once and gets the adapter alone at each sync, instead of all weights "
            "merged. Not with sleep mode, ZeRO-3 or FSDP2."
        },
    )
    share_prompts: bool = field(
        default=True,
        metadata={
            "help": "Handle each study once: its prompt and films are one row for all its rollouts, with the same "
            "log-probabilities and gradients. false: TRL's way, a row for each rollout."
        },
    )

    def __post_init__(self) -> None:
        if self.batch_counts not in ("prompts", "completions"):
            raise RecipeError(f"batch_counts is {self.batch_counts!r}; choose prompts or completions")
        if self.updates_per_generation < 1:
            raise RecipeError(f"updates_per_generation is {self.updates_per_generation}; it must be at least 1")


@dataclass
class MonitorArguments:
    """Limits that stop an RL run which goes wrong (null: watched and logged only), and the sample of rollouts kept."""

    monitor_max_length: float | None = field(
        default=None, metadata={"help": "Limit on the mean length of completions, in tokens."}
    )
    monitor_max_length_drift: float | None = field(
        default=None,
        metadata={
            "help": "Limit on the change of the mean length since the run's first logs, as a share of it (0.5: ±50%)."
        },
    )
    monitor_min_unique: float | None = field(
        default=None, metadata={"help": "Least share of different reports among the rollouts of a study."}
    )
    monitor_max_truncated: float | None = field(
        default=None, metadata={"help": "Limit on the share of completions cut at max_completion_length."}
    )
    monitor_max_prior_copies: float | None = field(
        default=None,
        metadata={"help": "Limit on the share of longitudinal rollouts that copy the prior report (90% of 4-grams)."},
    )
    monitor_max_zero_spread: float | None = field(
        default=None, metadata={"help": "Limit on the share of groups whose rewards are all equal: nothing to learn."}
    )
    monitor_min_entropy: float | None = field(
        default=None, metadata={"help": "Least mean entropy of the policy, in nats a token."}
    )
    monitor_max_kl: float | None = field(
        default=None, metadata={"help": "Limit on the KL to the reference policy, in nats a token (with beta above 0)."}
    )
    monitor_max_negation_flips: float | None = field(
        default=None,
        metadata={"help": "Limit on the share of findings affirmed that the reference denies, or inversely."},
    )
    monitor_heldout: str = field(
        default="label_f1",
        metadata={"help": "Watched, not optimised: label_f1 (micro, 14) or a metric, e.g. ratescore."},
    )
    monitor_max_heldout_drop: float | None = field(
        default=None,
        metadata={"help": "Limit on the fall of monitor_heldout since the first logs, while the reward holds."},
    )
    monitor_max_logp_difference: float | None = field(
        default=0.1,
        metadata={
            "help": "Limit on the mean difference of log-probabilities between vLLM and the trainer. Above it, the "
            "rollouts are not the policy's. Stops before an update uses them."
        },
    )
    monitor_min_film_effect: float | None = field(
        default=None,
        metadata={
            "help": "Least fall of micro-F1 (14 conditions) of greedy reports of 64 validation studies when the film is another "
            "patient's; measured at each save, and stops at two in a row below it. Default: not measured."
        },
    )
    monitor_patience: int = field(
        default=3,
        metadata={
            "help": "Logs in a row that must be beyond a limit before the run stops; as many (3 at least) make the start."
        },
    )
    rollouts_logged: int = field(
        default=16,
        metadata={
            "help": "Rollouts kept at each log in <stage>/rollouts/ as Parquet: step-* the best and the worst of each study, so "
            "many at most, groups-* all of two studies; 0 for none."
        },
    )

    def __post_init__(self) -> None:
        if self.monitor_patience < 1:
            raise RecipeError(f"monitor_patience is {self.monitor_patience}; it must be at least 1")
        if self.rollouts_logged < 0:
            raise RecipeError(f"rollouts_logged is {self.rollouts_logged}; it must be 0 or more")
        for name in ("unique", "truncated", "prior_copies", "zero_spread", "negation_flips"):
            key = f"monitor_min_{name}" if name == "unique" else f"monitor_max_{name}"
            value = getattr(self, key)
            if value is not None and not 0 <= value <= 1:
                raise RecipeError(f"{key} is {value}; it is a share, from 0 to 1")
