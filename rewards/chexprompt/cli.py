"""The judge at a command line: `python -m rewards judge | judge-cache | judge-agreement`."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import typing
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from foundation.errors import RecipeError
from foundation.governance import JudgeError
from foundation.recipe_files import read_yaml
from rewards.chexprompt import calls
from rewards.chexprompt.agreement import agreement, print_agreement
from rewards.chexprompt.cache import FILE_NAME, cache_stats, export_cache, prune_cache
from rewards.chexprompt.judge import Judge, JudgeResult
from rewards.chexprompt.ratings import (
    Pair,
    error_table,
    print_table,
    read_pairs,
    read_ratings,
    write_atomically,
    write_ratings,
)
from rewards.chexprompt.settings import JudgeSettings

# Causes that the next run need not meet.
TRANSIENT = {
    *(calls.RATE_LIMIT, calls.SERVER_ERROR, calls.TIMEOUT, calls.UNREACHABLE, calls.CONNECTION, calls.BAD_RESPONSE),
    *(calls.BAD_ANSWER, calls.TRUNCATED, calls.BATCH_DEADLINE),
}
PAIRS_AT_ONCE = 4096  # handed to the judge together: bounds memory, large enough to keep the endpoint busy


def add_parsers(subparsers: Any) -> None:
    """Add the three commands; each sets `run`, which takes the parsed arguments and exits with 1 or 2 on failure."""
    judge = subparsers.add_parser(
        "judge",
        help="count errors in a file of report pairs",
        description="Judge each line of PAIRS.jsonl (keys reference, candidate; optional id, source) and print the table of "
        "errors. Interrupted? Run the same command again: answers are kept in the cache as they arrive.",
    )
    judge.add_argument("--pairs", type=Path, required=True, help="JSONL file of pairs")
    judge.add_argument(
        "--out", type=Path, required=True, help="JSONL file of ratings to write; a summary goes beside it"
    )
    judge.add_argument("--source", help="data set that the reports are from, for rows that do not say")
    judge.add_argument("--config", type=Path, help="YAML file whose judge_ keys to use; options given here override it")
    add_judge_settings(judge)
    judge.set_defaults(run=command(_judge))

    cache = subparsers.add_parser("judge-cache", help="look into the judge's cache of answers, export it, prune it")
    actions = cache.add_subparsers(required=True, metavar="stats|export|prune")
    for name, function, text in (
        ("stats", _cache_stats, "number of answers and tokens by model and prompt"),
        ("export", _cache_export, "all answers as JSONL; reports appear as hashes only"),
        ("prune", _cache_prune, "delete answers that meet all conditions given"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("--judge-cache-dir", "--judge_cache_dir", type=Path, default=Path("outputs/judge_cache"))
        action.set_defaults(run=command(function))
        if name == "export":
            action.add_argument("--out", type=Path, required=True, help="JSONL file to write")
        if name == "prune":
            action.add_argument("--older-than", type=_at_least(0.0), metavar="DAYS")
            action.add_argument("--model", metavar="NAME")
            action.add_argument("--prompt-version", metavar="VERSION")

    compare = subparsers.add_parser(
        "judge-agreement",
        help="agreement of two files of ratings",
        description="Agreement of two judges, or of a judge and human counts, on the reports that both have rated.",
    )
    compare.add_argument("a", type=Path, metavar="A.jsonl")
    compare.add_argument("b", type=Path, metavar="B.jsonl")
    compare.add_argument("--errors", choices=("all", "significant"), default="all", help="which sum to compare")
    compare.add_argument("--seed", type=_at_least(0), default=0, help="of the bootstrap")
    compare.add_argument(
        "--out", type=Path, help="write the result as JSON too; a report shows judge_agreement.json of its run's folder"
    )
    compare.set_defaults(run=command(_agreement))


def _at_least(least: float) -> Callable[[str], Any]:
    """A parser of numbers of `least`'s kind that are not below it. NaN is none: a cutoff of NaN or of tomorrow says nothing."""

    def parse(text: str) -> Any:
        value = type(least)(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"{text} is not {least:g} or more")
        return value

    parse.__name__ = type(least).__name__
    return parse


def add_judge_settings(parser: argparse.ArgumentParser) -> None:
    """A flag for each of the judge's settings; one that is not given is not there."""
    group = parser.add_argument_group("judge")
    types = typing.get_type_hints(JudgeSettings)
    for setting in fields(JudgeSettings):
        names = [f"--{setting.name.replace('_', '-')}", f"--{setting.name}"]
        arguments: dict[str, Any] = {"help": setting.metadata["help"].replace("%", "%%"), "default": argparse.SUPPRESS}
        kind = next(t for t in (*typing.get_args(types[setting.name]), types[setting.name]) if t is not type(None))
        if types[setting.name] is bool:
            arguments["action"] = argparse.BooleanOptionalAction
        elif types[setting.name] == list[str]:
            arguments |= {"nargs": "*", "metavar": "HOST"}
        else:
            arguments |= {"type": _or_null(kind), "metavar": kind.__name__.upper()}
        group.add_argument(*names, dest=setting.name, **arguments)


def _or_null(kind: type) -> Callable[[str], Any]:
    """A parser of `kind`, and of `null` as in a YAML file: none."""

    def parse(text: str) -> Any:
        return None if text == "null" else kind(text)

    parse.__name__ = kind.__name__  # which argparse's message of a wrong value gives
    return parse


def command(function: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], None]:
    """`function` with a user's mistake as one line on stderr and exit status 2, an interruption as 130."""

    def run(arguments: argparse.Namespace) -> None:
        try:
            function(arguments)
        except JudgeError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted; run the same command again to resume", file=sys.stderr)
            sys.exit(130)

    return run


def settings_of(arguments: argparse.Namespace) -> JudgeSettings:
    """The settings of --config, overridden by the flags that are given."""
    # A file may take longer than a training batch is allowed to.
    values: dict[str, Any] = {"judge_batch_timeout": None}
    if arguments.config is not None:
        try:
            loaded = read_yaml(arguments.config)
        except RecipeError as error:
            raise JudgeError(str(error)) from error
        values |= {name: value for name, value in loaded.items() if str(name).startswith("judge_")}
    given = {s.name: getattr(arguments, s.name) for s in fields(JudgeSettings) if hasattr(arguments, s.name)}
    return JudgeSettings.from_mapping(values | given)


def _judge(arguments: argparse.Namespace) -> None:
    pairs = read_pairs(arguments.pairs, arguments.source)
    settings = settings_of(arguments)
    if arguments.out.is_dir() or arguments.out.resolve() == arguments.pairs.resolve():
        raise JudgeError(f"--out {arguments.out} must be another file than the pairs, and no folder")
    with Judge.from_settings(settings) as judge:
        judge.check_sources({pair.source for pair in pairs})
        results = asyncio.run(_judge_all(judge, pairs))
        write_ratings(arguments.out, pairs, results, judge)
        causes = Counter(result.failure for result in results if result.failure is not None)
        print(f"{arguments.out}: {len(pairs)} pairs, {judge.cached} without a call; {judge.spending}", file=sys.stderr)
        if judge.stopped is not None:
            print(f"error: {judge.stopped}", file=sys.stderr)
        judgements = [result.judgement for result in results]
        if any(judgement is not None for judgement in judgements):
            table = error_table(judgements)
            details = {"judge": judge.name, "prompt_version": judge.prompt_version, "fingerprint": judge.fingerprint}
            details |= {
                "answer_format": judge.answer_format,
                "failures": dict(causes),
                "retries": dict(judge.retries),
                "table": table,
            }
            details["spending"] = {
                "calls": judge.spending.calls,
                "prompt_tokens": judge.spending.prompt_tokens,
                "completion_tokens": judge.spending.completion_tokens,
                "cached_prompt_tokens": judge.spending.cached_tokens if judge.spending.reported_tokens else None,
                "dollars": judge.spending.dollars(),
            }
            write_atomically(arguments.out.with_suffix(".summary.json"), json.dumps(details, indent=1) + "\n")
            print(print_table(table, judge.name, causes))
    if causes:
        told = f"error: {sum(causes.values())} of {len(pairs)} pairs were not judged (see failure in {arguments.out})"
        if set(causes) & TRANSIENT:
            told += "; run the same command again to ask for them"
        elif judge.reasons:
            told += f": {', '.join(judge.reasons)}; change the judge_ settings that are named"
        print(told, file=sys.stderr)
        sys.exit(1)


async def _judge_all(judge: Judge, pairs: Sequence[Pair]) -> list[JudgeResult]:
    await judge.check()
    results: list[JudgeResult] = []
    with tqdm(total=len(pairs), desc="judge", unit="pair") as progress:

        def show(_: int, result: JudgeResult) -> None:
            progress.update()
            progress.set_postfix_str(str(judge.spending), refresh=False)

        for start in range(0, len(pairs), PAIRS_AT_ONCE):
            part = pairs[start : start + PAIRS_AT_ONCE]
            results += await judge.judge(
                [pair.candidate for pair in part],
                [pair.reference for pair in part],
                [pair.source for pair in part],
                on_result=show,
            )
    await judge.aclose()
    return results


def _cache_stats(arguments: argparse.Namespace) -> None:
    path = arguments.judge_cache_dir / FILE_NAME
    rows = cache_stats(path)
    print(f"{path}: {sum(row['answers'] for row in rows)} answers, {path.stat().st_size / 1e6:.1f} MB")
    for row in rows:
        print(
            f"{row['model']}  prompt {row['prompt_version']}  {row['answers']} answers, {row['prompt_tokens']} tokens in, "
            f"{row['completion_tokens']} out  sampling {row['sampling']}"
        )


def _cache_export(arguments: argparse.Namespace) -> None:
    records = list(export_cache(arguments.judge_cache_dir / FILE_NAME))
    write_atomically(arguments.out, "".join(json.dumps(record) + "\n" for record in records))
    print(f"{arguments.out}: {len(records)} answers")


def _cache_prune(arguments: argparse.Namespace) -> None:
    path = arguments.judge_cache_dir / FILE_NAME
    print(
        f"{path}: {prune_cache(path, arguments.older_than, arguments.model, arguments.prompt_version)} answers deleted"
    )


def _agreement(arguments: argparse.Namespace) -> None:
    result = agreement(read_ratings(arguments.a), read_ratings(arguments.b), arguments.errors, arguments.seed)
    if arguments.out is not None:
        result = {"names": [arguments.a.stem, arguments.b.stem], **result}
        write_atomically(arguments.out, json.dumps(result, indent=1) + "\n")
    print(print_agreement(result))
