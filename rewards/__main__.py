"""Rewards at a command line: `python -m rewards COMMAND`; `--help` lists the commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from foundation.governance import JudgeError
from rewards import score
from rewards.metric import MetricError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a user's mistake is one line on stderr and exit status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m rewards", description="Score chest X-ray reports.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    scoring = commands.add_parser("score", help="metrics of a file of report pairs", description=score.__doc__)
    score.add_arguments(scoring)
    scoring.set_defaults(run=score.run)
    if not arguments or arguments[0] != "score":  # the judge's client takes a second to import
        from rewards import sensitivity
        from rewards.chexprompt import cli
        from rewards.llm_metrics import cli as llm_cli

        cli.add_parsers(commands)
        llm_cli.add_parser(commands)
        edits = commands.add_parser(
            "sensitivity",
            help="which metric sees which error",
            description=sensitivity.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sensitivity.add_arguments(edits)
        edits.set_defaults(run=sensitivity.run)
    parsed = parser.parse_args(arguments)
    try:
        parsed.run(parsed)
    except (MetricError, JudgeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
