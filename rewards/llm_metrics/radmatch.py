"""RadMatch (Raidium, 2026): findings of both reports extracted, matched one by one, and each error named.

Three kinds of requests: the findings of each report (a reference's once for all its candidates), which of them match, and
which attributes of matched ones differ. Prompts, examples of chest films, schemas and all counting are those of the installed
`radmatch` package (0.2.2), whose functions are driven with a client that asks nobody: it gives them the answers that there
are, and says what they would ask next. The judge's engine asks it.

Where RadMatch mends an answer (keeps the valid part of a matching, splits a batch of pairs, takes a default for a level that
it does not know), that answer is malformed here: asked for again, with RadMatch's own words on what was wrong, then a failure.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rewards.chexprompt.judgement import JudgeResult
from rewards.chexprompt.parse import AnswerError
from rewards.chexprompt.settings import JudgeSettings
from rewards.llm_metrics.base import LlmMetric, LlmScore, MetricPrompt

FEWSHOT = "chest-xr"  # the package's examples of chest films; our choice, it has none by default
MOST_FINDINGS = 200  # of one report; more is none
_KINDS = {"COR": "correct", "PAR": "partial", "INC": "incorrect", "MIS": "missing", "SPU": "spurious"}
REPORTS_HELD = 4096  # whose findings are held in memory
_NO_ANSWER = "the answer is not in RadMatch's format"
_ID = "report"  # what the package calls a study; its findings are numbered under it

Findings = list[dict[str, Any]]


class _AsksError(BaseException):
    """What the package would ask next. Not an `Exception`: the package catches, logs and retries those."""

    def __init__(self, messages: Sequence[Mapping[str, Any]], schema: Mapping[str, Any]) -> None:
        super().__init__("a request")
        self.messages, self.schema = list(messages), dict(schema)


class _Answered:
    """The package's client: it has these answers, in this order."""

    model, reasoning = "", "none"

    def __init__(self, answers: Sequence[str]) -> None:
        self._left = list(answers)

    def complete(self, messages: Any, response_format: Any = None, **_: Any) -> str:
        if not self._left:
            raise _AsksError(messages, response_format)
        return self._left.pop(0)


@dataclass
class _Turn:
    """Pairs that want the findings of one report: the first asks, and the others have its answer or its failure."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0
    failure: str | None = None


class RadMatch(LlmMetric):
    """Score 1 / (actionable errors + 1), in (0, 1], the form that the paper gives its judge's count; `actionable_errors` is
    RadMatch's own number, beside correct, partial, incorrect, missing and spurious findings.

    A text without words has no findings; nobody is asked for them.
    """

    metric = "radmatch"
    longest_answer = 8192
    as_json = True

    def __init__(self, settings: JudgeSettings, base_url: str, model: str) -> None:
        super().__init__(settings, base_url, model)
        # Texts, and so in memory only: what is kept on disk has no word of a report.
        self._findings: OrderedDict[tuple[str, str], Findings] = OrderedDict()
        self._turns: dict[tuple[str, str], _Turn] = {}

    @staticmethod
    def prompt_for(model: str) -> MetricPrompt:
        return radmatch_prompt()

    async def _ask_until_answered(self, reference: str, candidate: str) -> JudgeResult:
        text, context = json.loads(reference)
        indication = str(context.get("indication") or "")
        tokens = [0, 0]
        findings = []
        for report in (text, candidate):
            found, cause = await self._extracted(report, indication, tokens)
            if found is None:
                return JudgeResult(None, cause)
            findings.append(found)
        ours, theirs = findings
        matching, cause = await self._driven(lambda client: _matched(client, theirs, ours, indication), tokens)
        if matching is None:
            return JudgeResult(None, cause)
        scored, cause = await self._driven(
            lambda client: _scored(client, matching, theirs, ours, indication), tokens, _check_attribute_errors
        )
        if scored is None:
            return JudgeResult(None, cause)
        return self.keep(reference, candidate, scored, *tokens)

    async def _extracted(self, report: str, indication: str, tokens: list[int]) -> tuple[Findings | None, str | None]:
        """The findings of a report, asked for once however many pairs want them; or None and the cause why there are none."""
        if not report.strip():
            return [], None
        key = report, indication
        messages = self.prompt.messages(report, "", {"indication": indication})

        async def attempt(_: bool) -> Findings:
            return _read_findings(await self._answer(messages, _schema(), tokens))

        turn = self._turns.setdefault(key, _Turn())
        turn.waiting += 1
        try:
            async with turn.lock:
                if key not in self._findings and turn.failure is None:
                    found, turn.failure = await self.until_answered(attempt)
                    if found is not None:
                        self._findings[key] = found
                if turn.failure is not None:
                    return None, turn.failure
                self._findings.move_to_end(key)
                while len(self._findings) > REPORTS_HELD:
                    self._findings.popitem(last=False)
                return self._findings[key], None
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                self._turns.pop(key, None)

    async def _driven(
        self, step: Callable[[Any], Any], tokens: list[int], check: Callable[[str], None] = lambda _: None
    ) -> tuple[Any, str | None]:
        """What a function of the package gives, its requests asked one after another; or None and the cause of the failure."""
        answers: list[str] = []
        while True:
            try:
                return step(_Answered(answers)), None
            except _AsksError as request:
                wanted = request
            corrected = wanted

            async def attempt(_: bool, wanted: _AsksError = wanted) -> str:
                nonlocal corrected
                answer = await self._answer(corrected.messages, wanted.schema, tokens)
                try:
                    step(_Answered([*answers, answer]))
                except _AsksError as after:
                    if after.schema == wanted.schema and _corrects(after.messages, wanted.messages):
                        corrected = after
                        raise AnswerError(_NO_ANSWER) from None
                check(answer)
                return answer

            answer, cause = await self.until_answered(attempt)
            if answer is None:
                return None, cause
            answers.append(answer)

    async def _answer(self, messages: Sequence[Mapping[str, Any]], schema: Mapping[str, Any], tokens: list[int]) -> str:
        body = self.request([dict(message) for message in messages])
        answer = await self.ask(lambda _, constrained: body | ({"response_format": schema} if constrained else {}))
        tokens[0] += answer.prompt_tokens
        tokens[1] += answer.completion_tokens
        if not answer.text.strip():  # the package would wait a minute before it says so
            raise AnswerError("empty answer")
        return answer.text


def _corrects(messages: list[Any], before: list[Any]) -> bool:
    """Whether a request is the one before with what was wrong: RadMatch adds a message, or puts it before the last one's."""
    as_first_words = messages[:-1] == before[:-1] and messages[-1]["content"].endswith(before[-1]["content"])
    return messages[:-1] == before or as_first_words


# ---- the package's steps -----------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def radmatch_prompt() -> MetricPrompt:
    """RadMatch's request for the findings of a report (the reference's place), and the version of all its prompts.

    Raises:
        ValueError: radmatch is not installed, or is another version than its functions are called for.
    """
    how = "RadMatch's prompts are taken from its package: pip install radmatch==0.2.2"
    try:
        package = version("radmatch")
        from radmatch.llm_utils import prompts
    except PackageNotFoundError as error:
        raise ValueError(f"radmatch is not installed; {how}") from error
    except ImportError as error:
        raise ValueError(f"radmatch cannot be imported ({error}); {how}") from error
    logging.getLogger("radmatch").setLevel(
        logging.ERROR
    )  # it warns of each answer that it mends: here they are failures
    examples = prompts.extraction_fewshot_messages(FEWSHOT)
    if not examples:
        raise ValueError(f"radmatch {package} has no examples {FEWSHOT}; {how}")
    names = (prompts.PROMPT_FINDING_EXTRACTION, prompts.PROMPT_MATCHING, prompts.PROMPT_ATTRIBUTE_ERRORS)
    shown = [prompts.load_prompt(name) for name in names]
    shown += [
        str(load(FEWSHOT)) for load in (prompts.matching_fewshot_messages, prompts.attribute_errors_fewshot_messages)
    ]

    def messages(report: str, _: str, context: Mapping[str, str]) -> list[dict[str, str]]:
        system = prompts.load_prompt(prompts.PROMPT_FINDING_EXTRACTION)
        return prompts.build_messages(system, report, examples, indication=context.get("indication") or None)

    digest = hashlib.sha256(json.dumps([shown, messages("report", "", {})]).encode()).hexdigest()[:12]
    return MetricPrompt(f"radmatch-{package}-{FEWSHOT}-{digest}", messages)


def _schema() -> Mapping[str, Any]:
    from radmatch.finding_extraction import inference

    return inference._FINDINGS_SCHEMA


def _read_findings(text: str) -> Findings:
    """The findings of an answer, as the package normalises them; a level that it would replace by a default is none."""
    from radmatch import constants
    from radmatch.finding_extraction import extract_utils

    try:
        raw = json.loads(text)["findings"]
        levels = [(f["clinical_status"], f["clinical_significance"], f["comparison"]) for f in raw]
        texts = [f["text"] for f in raw]
        found = extract_utils.extract_findings_list(raw, _ID)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AnswerError(_NO_ANSWER) from error
    allowed = (
        constants.CLINICAL_STATUS_VALUES,
        constants.CLINICAL_SIGNIFICANCE_VALUES,
        {None, *constants.COMPARISON_VALUES},
    )
    known = all(
        type(v) in (str, type(None)) and v in values for row in levels for v, values in zip(row, allowed, strict=True)
    )
    if not known or len(raw) > MOST_FINDINGS or not all(isinstance(text, str) and text.strip() for text in texts):
        raise AnswerError("a finding of the answer has no text, or a level that RadMatch does not know")
    return found


def _check_attribute_errors(text: str) -> None:
    """Raise `AnswerError` where the package would leave an error of the answer out."""
    from radmatch import constants

    errors = [error for pair in json.loads(text).get("errors_per_match") or [] for error in pair]
    for error in errors:
        if (
            not isinstance(error, dict)
            or error.get("dimension") not in constants.ATTRIBUTE_DIMENSIONS_LLM_ACCEPTED
            or error.get("severity") not in constants.ATTRIBUTE_ERROR_SEVERITIES
        ):
            raise AnswerError("an error of the answer has a dimension or severity that RadMatch does not know")


def _matched(client: Any, theirs: Findings, ours: Findings, indication: str) -> dict[str, Any]:
    from radmatch import MatchingContext, match_findings

    return match_findings(theirs, ours, _ID, MatchingContext(client, FEWSHOT, max_validation_retries=1), indication)


def _scored(client: Any, matching: dict[str, Any], theirs: Findings, ours: Findings, indication: str) -> LlmScore:
    from radmatch import ScoringContext, score_pair
    from radmatch.scoring import metrics

    scored = score_pair(matching, theirs, ours, _ID, ScoringContext(client, FEWSHOT, max_score_retries=1), indication)
    records, spurious, missing = (scored[name] for name in ("muc_records", "unmatched_pred", "unmatched_gt"))
    counts = metrics.effective_muc_counts(records, n_spu=len(spurious), n_mis=len(missing))
    errors = metrics.compute_actionable_errors(records, spurious, missing)
    return LlmScore(1 / (errors + 1), {"actionable_errors": errors, **{_KINDS[kind]: n for kind, n in counts.items()}})
