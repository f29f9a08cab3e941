"""GREEN (Ostmeier et al. 2024): StanfordAIMI/GREEN-radllama2-7b counts errors and matched findings in its own format.

    GREEN = matched findings / (matched findings + clinically significant errors), 0 where nothing matches.

The model was trained on one prompt, which is taken from the installed `radeval` package and not written again. Its answers
are read strictly: where RadEval 2.2.1 reads an answer without its sections as no errors and nothing matched (0), it is a
malformed answer here, asked for again and then a failure, never a score. Serve the model with its own chat template
(`vllm serve StanfordAIMI/GREEN-radllama2-7b`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rewards.chexprompt.parse import MAX_COUNT, AnswerError
from rewards.llm_metrics.base import LlmMetric, LlmScore, MetricPrompt

_SECTIONS = ("Clinically Significant Errors", "Clinically Insignificant Errors", "Matched Findings")
_SECTION = re.compile(r"\[(" + "|".join(_SECTIONS) + r")\]:[ \t]*\n?(.*?)(?=\n\s*\[[A-Z][A-Za-z ]+\]:|\Z)", re.DOTALL)
_ERRORS = re.compile(r"^\s*\(([a-f1-6])\)[^\n]*?: ?(\d+)\.(?!\d)", re.MULTILINE)
_MATCHED = re.compile(r"\s*(\d+)\.(?!\d)")
_NONE = re.compile(r"\s*(?:no\b|none\b)", re.IGNORECASE)


class Green(LlmMetric):
    """Score in [0, 1]; counts `significant`, `insignificant`, `matched`."""

    metric = "green"

    @staticmethod
    def prompt_for(model: str) -> MetricPrompt:
        return green_prompt()

    def parse(self, text: str) -> LlmScore:
        return parse_green(text)


@lru_cache(maxsize=1)
def green_prompt() -> MetricPrompt:
    """GREEN's prompt, of the installed radeval.

    Raises:
        ValueError: radeval is not installed, or has no such prompt.
    """
    how = "GREEN's prompt is taken from radeval: pip install --no-deps radeval==2.2.1"
    try:
        package = version("radeval")
    except PackageNotFoundError as error:
        raise ValueError(f"radeval is not installed; {how}") from error
    make_prompt = _one_file("radeval", "metrics/green_score/utils.py", "make_prompt")
    if make_prompt is None:
        raise ValueError(f"radeval {package} has no metrics/green_score/utils.py with make_prompt; {how}")

    def messages(reference: str, candidate: str, context: Mapping[str, str]) -> list[dict[str, str]]:
        return [{"role": "user", "content": make_prompt(reference, candidate)}]

    shown = hashlib.sha256(make_prompt("reference", "candidate").encode()).hexdigest()[:12]
    return MetricPrompt(f"green-radeval-{package}-{shown}", messages)


def _one_file(package: str, file: str, name: str) -> Any:
    """`name` of one file of a package, without importing the package: all of RadEval takes far more than its prompt."""
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    path = next((Path(folder) / file for folder in folders if (Path(folder) / file).is_file()), None)
    if path is None:
        return getattr(sys.modules.get(f"{package}.{file[:-3].replace('/', '.')}"), name, None)
    loaded = importlib.util.spec_from_file_location(f"_{package}_{path.stem}", path)
    module = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)
    return getattr(module, name, None)


def parse_green(text: str) -> LlmScore:
    """The score of an answer in GREEN's format.

    Raises:
        AnswerError: a section is missing or twice, a line has no number, or a number is absurd.
    """
    found = _SECTION.findall(text)
    sections = dict(found)
    if (
        len(found) != len(sections)
        or set(sections) - set(_SECTIONS)
        or not {_SECTIONS[0], _SECTIONS[2]} <= set(sections)
    ):
        raise AnswerError("the answer has not GREEN's sections, each once")
    counts = {
        "significant": _errors(sections[_SECTIONS[0]]),
        "insignificant": _errors(sections.get(_SECTIONS[1], "No")),
        "matched": _matched(sections[_SECTIONS[2]]),
    }
    total = counts["matched"] + counts["significant"]
    return LlmScore(counts["matched"] / total if counts["matched"] else 0.0, counts)


def _errors(body: str) -> int:
    if _NONE.match(body):
        return 0
    lines = [line for line in body.splitlines() if line.lstrip().startswith("(")]
    found = _ERRORS.findall(body)
    if not lines or len(found) != len(lines) or len({letter for letter, _ in found}) != len(found):
        raise AnswerError("an error type of the answer has no number, or two")
    return sum(_bounded(number) for _, number in found)


def _matched(body: str) -> int:
    if _NONE.match(body):
        return 0
    match = _MATCHED.match(body)
    if match is None:
        raise AnswerError("the answer does not say how many findings match")
    return _bounded(match[1])


def _bounded(number: str) -> int:
    if len(number) > 3 or int(number) > 5 * MAX_COUNT:
        raise AnswerError(f"a count of the answer is above {5 * MAX_COUNT}")
    return int(number)
