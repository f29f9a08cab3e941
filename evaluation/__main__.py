"""python -m evaluation generate | baseline | score | compare | summary | seeds | report | submission | write | reader-study |
counterfactual | share (each with --help)."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evaluation import statistics
from evaluation.commands import add_commands, add_server, generate_at_server
from foundation.errors import EvaluationError, run_command
from foundation.governance import JudgeError
from foundation.locks import folder_lock
from foundation.masking import mask
from rewards.registry import LLM_METRIC_NAMES
from settings.llm_metrics import SETTINGS_HELP, named_settings


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    options.run(options)


def run(arguments: Sequence[str] | None = None) -> None:
    """`main`, where a user's mistake, or a place that cannot be written, is one line on stderr and exit status 2."""
    run_command(lambda: main(arguments))


def _generate(options: argparse.Namespace) -> None:
    from evaluation.generate import Task, generate, generate_shard
    from model.engines import GenerationSettings

    engine = "auto" if options.engine == "server" else options.engine
    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(GenerationSettings) if f.name != "engine"}
    settings = GenerationSettings(**{name: value for name, value in given.items() if value is not None}, engine=engine)
    if options.batch_size < 1:
        raise EvaluationError(f"--batch_size is {options.batch_size}; it must be at least 1")
    task = Task(
        options.model, options.data, options.split, options.out, settings, options.batch_size, options.max_studies
    )
    if options.engine == "server":
        generate_at_server(options, settings)
        return
    if options.processes is not None and options.processes < 1:
        raise EvaluationError(f"--processes is {options.processes}; it must be at least 1")
    if options.shard:
        if options.force or options.processes:
            raise EvaluationError("--shard is one process's part; give --force and --processes to the run without it")
        generate_shard(task, *options.shard)
        return
    result = generate(task, force=options.force, processes=options.processes)
    print(f"{options.out / 'predictions.json'}: {result['made_by']['studies']} reports")


def _baseline(options: argparse.Namespace) -> None:
    from evaluation.baselines import write_baseline

    train = options.train or [options.data]
    result = write_baseline(
        options.name, options.data, options.split, train, options.out, options.sections, options.force
    )
    if result is None:
        raise EvaluationError("no training study to learn from; name prepared folders that have some with --train")
    replaced = result["studies_given_the_most_frequent_report"]
    note = f"; {replaced} studies without a prior or an indication got the most frequent report" if replaced else ""
    print(f"{options.out / 'predictions.json'}: baseline {options.name}{note}")


def _score(options: argparse.Namespace) -> None:
    from evaluation.predictions import ReferenceForm
    from evaluation.scorers import METRICS, OPTIONAL_METRICS, open_scorers
    from evaluation.scoring import score_file

    files = options.predictions
    outs = [options.out] if len(files) == 1 else [options.out / name for name in _file_names(files)]
    with open_scorers(
        options.backend,
        options.weights_dir,
        options.metrics.split(",") if options.metrics else METRICS,
        _judge_settings(options),
        options.temporal == "judge",
        () if options.metrics else OPTIONAL_METRICS,
        _llm_metrics(options),
    ) as scorers:
        for file, out in zip(files, outs, strict=True):
            result = score_file(
                file,
                scorers,
                out,
                references=options.references,
                data=options.data,
                split=options.split,
                dataset=options.dataset,
                sections=options.sections,
                form=ReferenceForm(options.reference_form, options.missing_section),
                resamples=options.resamples,
                seed=options.seed,
                force=options.force,
            )
            _print_scores(out.name, result)
    if len(outs) > 1:
        _compare_folders(outs, options.out / "comparison.json", options.resamples, options.seed)


def _print_scores(name: str, result: dict[str, Any]) -> None:
    from evaluation.compare import table

    print(table({**result, "means": {name: result["metrics"]}, "pairs": [], "not_compared": []}))
    for problem, ids in result["listed"].items():
        count = result["counts"][problem]
        print(f"{count} {problem.replace('_', ' ')}: {', '.join(ids[:5])}{', …' if count > 5 else ''}")
    for cause, count in result["judge_failures"].items():
        print(f"{count} judge calls failed: {cause}; their errors are not counted")
    for metric, causes in result["metric_failures"].items():
        for cause, count in causes.items():
            print(f"{count} reports have no {metric}: {cause}; its mean is over the others")


def _file_names(files: Sequence[Path]) -> list[str]:
    """A distinct folder name for each prediction file: its own, or its folder's."""
    for names in ([file.stem for file in files], [file.resolve().parent.name for file in files]):
        if len(set(names)) == len(files):
            return names
    raise EvaluationError("the prediction files have the same names; rename them, or score them one by one")


def _compare(options: argparse.Namespace) -> None:
    if len(options.folders) < 2:
        raise EvaluationError("compare needs at least two folders with scores.jsonl")
    _compare_folders(options.folders, options.out, options.resamples, options.seed)


def _compare_folders(paths: Sequence[Path], out: Path | None, resamples: int, seed: int) -> None:
    from evaluation.compare import compare, named_folders, read_result, table
    from evaluation.scores import Scores
    from foundation.files import write_json

    folders = named_folders(paths)
    described = {name: read_result(folder)["made_by"]["scorers"] for name, folder in folders.items()}
    models = {name: Scores.read(folder / "scores.jsonl") for name, folder in folders.items()}
    result = compare(models, described, resamples=resamples, seed=seed)
    if out:
        write_json(out, result)
    print(table(result))


def _summary(options: argparse.Namespace) -> None:
    from evaluation.summary import summarise_run, text

    with _alone_in(options.outputs):
        print(text(summarise_run(options.outputs, options.resamples, options.seed)))
    print(f"written to {options.outputs / 'summary.json'}")


def _alone_in(outputs: Path) -> contextlib.AbstractContextManager[None]:
    """The run's lock, where there is a run."""
    return folder_lock(outputs) if outputs.is_dir() else contextlib.nullcontext()


def _seeds(options: argparse.Namespace) -> None:
    from evaluation.seeds import seeds_table

    print(seeds_table(options.runs))


def _report(options: argparse.Namespace) -> None:
    from evaluation.report import write_report

    with _alone_in(options.outputs):
        path = write_report(
            options.outputs,
            data_dir=options.data_dir,
            browser_studies=options.browser_studies,
            resamples=options.resamples,
            seed=options.seed,
        )
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, opens offline in any browser")


def _submission(options: argparse.Namespace) -> None:
    from evaluation.submission import pack

    folder = pack(
        options.model, options.description, options.test_file, options.predictions, options.out, options.force
    )
    print(f"{folder}: complete")


def _llm_metrics(options: argparse.Namespace) -> dict[str, Any]:
    from rewards.chexprompt.settings import JudgeSettings
    from rewards.llm_metrics import settings_by_metric

    try:
        judge = JudgeSettings.from_mapping(_judge_settings(options) or {})
        return settings_by_metric(options.llm_metrics, named_settings(options.llm_metric_settings), judge)
    except JudgeError as error:
        raise EvaluationError(" ".join(str(error).split())) from error


def _judge_settings(options: argparse.Namespace) -> dict[str, Any] | None:
    # `null` on the command line means none, as in a YAML file; a flag that is not given is not there at all.
    given = {k: v for k, v in vars(options).items() if k.startswith("judge_")}
    if options.judge == "none":
        return None
    if options.judge == "offline":
        return {"judge_base_url": "offline", **given}
    if not given.get("judge_model"):
        raise EvaluationError(f"--judge {options.judge} needs --judge_model, the model that this server serves")
    return {"judge_base_url": options.judge, **given}


def _yes_or_no(text: str) -> bool:
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        return value

    return number


def _shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not i/n with 0 <= i < n")
    return int(part), int(parts)


class _Parser(argparse.ArgumentParser):
    """A wrong flag is one line, as every mistake is."""

    def error(self, message: str) -> None:
        print(f"error: {mask(message)}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    from evaluation.predictions import BOARD
    from model.engines import ENGINES
    from settings.evaluations import BASELINES, REFERENCE_FORMS, SECTIONS

    parser = _Parser(prog="python -m evaluation", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command", parser_class=_Parser)

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        return made

    def add_data(made: argparse.ArgumentParser, required: bool) -> None:
        made.add_argument("--data", type=Path, required=required, help="prepared folder, e.g. data/mimic")
        made.add_argument("--split", default="test", choices=("train", "validation", "test"))

    def add_bootstrap(made: argparse.ArgumentParser) -> None:
        made.add_argument("--resamples", type=_at_least(1), default=statistics.RESAMPLES)
        made.add_argument("--seed", type=_at_least(0), default=0)

    made = command("generate", _generate, "write a model's report for every study, greedily")
    made.add_argument("--model", required=True, help="checkpoint folder or hub name")
    add_data(made, required=True)
    made.add_argument("--out", type=Path, required=True, help="folder for predictions.json")
    made.add_argument("--batch_size", type=int, default=16)
    made.add_argument("--sections", default=BOARD, choices=SECTIONS, help="which sections are asked for")
    made.add_argument("--longitudinal", type=_yes_or_no, default=True, help="show the prior image and report")
    made.add_argument("--context", type=_yes_or_no, default=True, help="show indication and comparison")
    made.add_argument(
        "--max_new_tokens", type=int, help="default: 512; of engine server 1024, as other models may think first"
    )
    made.add_argument(
        "--engine", default="auto", choices=(*ENGINES, "server"), help="server: somebody else's, by --base-url"
    )
    made.add_argument("--dtype", default="auto")
    add_server(made)
    made.add_argument("--max_studies", type=_at_least(1), default=None, help="only the first so many")
    made.add_argument(
        "--shard", type=_shard, default=None, metavar="i/n", help="one process's part, merged by a run without it"
    )
    made.add_argument("--processes", type=int, default=None, help="how many share the studies (default: one a GPU)")
    made.add_argument("--force", action="store_true", help="make them again")

    made = command("baseline", _baseline, "write the reports of a baseline that sees no image")
    made.add_argument("--name", required=True, choices=BASELINES)
    add_data(made, required=True)
    made.add_argument(
        "--train", type=Path, nargs="+", help="prepared folders whose train split is used (default: --data)"
    )
    made.add_argument("--sections", default=BOARD, choices=SECTIONS, help="which sections it writes")
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--force", action="store_true", help="replace one that learned from other data sets")

    made = command("score", _score, "score a file of predictions in ReXrank's form")
    made.add_argument(
        "--predictions", type=Path, nargs="+", required=True, help="one file, or several to score and compare"
    )
    made.add_argument("--references", type=Path, help="ReXrank test file (default: the references in --predictions)")
    add_data(made, required=False)
    made.add_argument("--dataset", help="the data set's name, where neither --data nor the file says it")
    made.add_argument("--out", type=Path, required=True, help="folder for scores.jsonl and scores.json")
    made.add_argument("--sections", default=BOARD, choices=SECTIONS, help="which sections are compared")
    made.add_argument(
        "--reference_form",
        default="raw",
        choices=REFERENCE_FORMS["text"],
        help="raw: line breaks kept, as ReXrank scores",
    )
    made.add_argument(
        "--missing_section", default="None", choices=REFERENCE_FORMS["missing_section"], help="what stands for one"
    )
    made.add_argument("--backend", default="real", choices=("real", "offline"))
    made.add_argument("--weights_dir", type=Path, default=Path("weights"))
    made.add_argument(
        "--metrics",
        help="comma-separated; default: bleu2,bertscore,sembscore,radgraph, and ratescore where it can be had",
    )
    made.add_argument(
        "--judge", default="none", help="none, offline (rule stand-in), or the URL of an OpenAI-compatible server"
    )
    made.add_argument(
        "--llm_metrics",
        nargs="+",
        default=[],
        choices=LLM_METRIC_NAMES,
        help="metrics that a language model is asked for",
    )
    made.add_argument("--llm_metric_settings", help=SETTINGS_HELP)
    made.add_argument(
        "--temporal", default="rules", choices=("rules", "judge"), help="what labels change in the references"
    )
    _add_judge_settings(made)
    add_bootstrap(made)
    made.add_argument("--force", action="store_true", help="score again")

    made = command("compare", _compare, "compare scored models on the same studies")
    made.add_argument("folders", type=Path, nargs="+", help="folders with scores.jsonl")
    made.add_argument("--out", type=Path, help="JSON file for the result")
    add_bootstrap(made)

    made = command("summary", _summary, "the principal numbers of a run: summary.json")
    made.add_argument("--outputs", type=Path, required=True, help="the run's folder, e.g. outputs/demo")
    add_bootstrap(made)

    made = command("seeds", _seeds, "runs of several seeds side by side, as Markdown")
    made.add_argument("runs", type=Path, nargs="+", help="run folders with summary.json")

    made = command("report", _report, "the run's report: one HTML file")
    made.add_argument("--outputs", type=Path, required=True, help="the run's folder, e.g. outputs/demo")
    made.add_argument(
        "--data_dir", type=Path, help="folder of the prepared data sets, for images (default: where they were scored)"
    )
    made.add_argument(
        "--browser_studies", type=_at_least(0), default=3000, help="studies in the browser at most; 0 for no browser"
    )
    add_bootstrap(made)

    made = command("submission", _submission, "pack and check a submission to ReXrank")
    made.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    made.add_argument("--description", type=Path, required=True, help="YAML: name, institution, paper, code, year")
    made.add_argument("--test_file", type=Path, required=True, help="ReXrank's test file")
    made.add_argument("--predictions", type=Path, required=True, help="the answer to it, by inference.py")
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--force", action="store_true", help="replace what is there")
    add_commands(command)
    return parser


def _yaml_value(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError("no value as YAML has it") from error


def _add_judge_settings(made: argparse.ArgumentParser) -> None:
    """A flag for every field of JudgeSettings."""
    from rewards.chexprompt.settings import JudgeSettings

    for field in dataclasses.fields(JudgeSettings):
        if field.name != "judge_base_url":
            made.add_argument(f"--{field.name}", type=_yaml_value, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


if __name__ == "__main__":
    run()
