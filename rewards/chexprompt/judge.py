"""The judge: pairs of reports in, counted errors out, each right or None with the cause of the failure.

Local vLLM server (the default), OpenAI, Azure (`https://NAME.openai.azure.com/openai/v1`), or `offline`, the rule-based
stand-in for machines without a language model. All are asked through the same client over HTTP.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from foundation.governance import JudgeError, check_sources, host_of
from rewards.chexprompt import calls
from rewards.chexprompt.cache import JudgeCache, sha256
from rewards.chexprompt.calls import Answer, CallError, Spending
from rewards.chexprompt.client import ChatClient
from rewards.chexprompt.judgement import Judgement, JudgeResult
from rewards.chexprompt.parse import RESPONSE_FORMAT, STRUCTURED_DIGITS, AnswerError, WrappedAnswerError, parse_answer
from rewards.chexprompt.rubric import load_prompt
from rewards.chexprompt.settings import JudgeSettings, api_key, secret_in
from rewards.offline import judge_server

log = logging.getLogger(__name__)

T = TypeVar("T")

OFFLINE = "offline"
_LONGEST_BACKOFF = 30.0  # seconds
# Of a request: not for judge_extra_body.
_OWN_FIELDS = {"model", "messages", "response_format", "structured_outputs", "n", "stream"}


class Judge:
    """Counts errors in candidate reports by asking a language model.

    Attributes:
        name: `chexprompt[MODEL]`.
        model: the model's name.
        prompt_version: name and hash of the prompt.
        fingerprint: sha256 over model, prompt and sampling settings.
        answer_format: `json`, `list` or `digits`, as asked for now; with `auto` it begins as json.
        constrained: whether the endpoint is asked to allow nothing but that format; a list never is.
        spending: calls, tokens and money so far.
        failures: pairs left unjudged so far, by cause.
        retries: requests that had to be repeated so far, by cause.
        reasons: why requests were refused or answers not taken, with status and names of fields, so far.
        cached: pairs answered from the cache, or as a copy of another pair of the same batch, so far.
        stopped: why no further call is made (wrong key, wrong model, budget reached), or None.
    """

    metric = "chexprompt"
    cache_type = JudgeCache

    def __init__(self, settings: JudgeSettings, base_url: str, model: str):
        self.settings = settings
        self.base_url = base_url
        self.model = model
        try:
            self.prompt = self.load_prompt()
            self._extra_body = json.loads(settings.judge_extra_body or "{}")
        except json.JSONDecodeError as error:
            raise JudgeError(f"judge_extra_body is not JSON ({error.msg} at character {error.pos + 1})") from error
        except (ValueError, RecursionError) as error:
            raise JudgeError(str(error)) from error
        if not isinstance(self._extra_body, dict) or _OWN_FIELDS & set(self._extra_body):
            raise JudgeError(
                f'judge_extra_body must be a JSON object such as {{"seed": 1}}, without {", ".join(sorted(_OWN_FIELDS))}'
            )
        for name in ("max_completion_tokens", "max_tokens"):
            limit = self._extra_body.get(name)
            if limit is not None and (type(limit) is not int or limit < 1):
                raise JudgeError(f"judge_extra_body: {name} is {limit!r}; it must be a whole number above 0, or null")
        if secret := secret_in(self._extra_body):
            raise JudgeError(
                f"judge_extra_body holds {secret!r}, and would be kept with the results; put the key into the environment "
                "variable that judge_api_key_env names"
            )
        self.name = f"{self.metric}[{model}]"
        self.prompt_version = self.prompt.version
        sampling = {
            "temperature": settings.judge_temperature,
            "max_tokens": settings.judge_max_tokens,
            "answer_format": settings.judge_answer_format,
            "extra_body": self._extra_body,
        }
        # The stand-in's answers change with its rules, which its model name does not say.
        versioned = f"{model}@{judge_server.rules_version()}" if model == judge_server.MODEL else model
        self.fingerprint = sha256(json.dumps([versioned, self.prompt_version, sampling], sort_keys=True))
        self.cache = (
            self.cache_type(settings.judge_cache_dir, versioned, self.prompt_version, sampling)
            if settings.judge_cache_dir
            else None
        )
        self.spending = Spending(
            settings.judge_budget_calls,
            settings.judge_budget_tokens,
            settings.judge_budget_dollars,
            settings.judge_price_input,
            settings.judge_price_output,
            settings.judge_price_cached,
        )
        self.failures: Counter[str] = Counter()
        self.retries: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.cached = 0
        self.stopped: str | None = None
        self._stopped_cause = ""
        self._unkept: JudgeError | None = None  # why answers could not be kept
        self._api_key = api_key(settings, base_url)
        self.answer_format = "json" if settings.judge_answer_format == "auto" else settings.judge_answer_format
        self.constrained = self.answer_format != "list"
        self._constraint_works = settings.judge_answer_format in ("json", "list")  # known, or not to be questioned
        self._client: ChatClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._cleanup = contextlib.ExitStack()

    @classmethod
    def from_settings(cls, settings: JudgeSettings) -> Judge:
        """A judge for `settings`; for `judge_base_url: offline` this starts the stand-in's server, `close` stops it.

        Raises:
            JudgeError: the settings cannot work. Nothing is asked yet: see `check`.
        """
        if settings.judge_base_url == OFFLINE:
            with contextlib.ExitStack() as cleanup:
                base_url = cleanup.enter_context(judge_server.offline_judge_server())
                judge = cls(settings, base_url, judge_server.MODEL)
                judge._cleanup = cleanup.pop_all()
            atexit.register(judge.close)
            return judge
        host_of(settings.judge_base_url)
        if not settings.judge_model:
            raise JudgeError(
                f"judge_model is not set; name a model that {host_of(settings.judge_base_url)} serves "
                f"(it lists them at {settings.judge_base_url.rstrip('/')}/models)"
            )
        return cls(settings, settings.judge_base_url, settings.judge_model)

    # ---- what rewards/llm_metrics has of its own -------------------------------------------------------------------

    def load_prompt(self) -> Any:
        """The prompt: an object with a `version`. Raises ValueError where it cannot be had."""
        return load_prompt(self.settings.judge_prompt_file, self.settings.judge_answer_format)

    def parse(self, text: str) -> Judgement:
        """What an answer says; raises `AnswerError` where it is not in the format."""
        return parse_answer(text, self.settings.judge_answer_wrappers, self.answer_format == "digits")

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the cache and stop the stand-in's server, if this judge started one."""
        if self.cache is not None:
            self.cache.close()
        self._cleanup.close()
        atexit.unregister(self.close)

    async def aclose(self) -> None:
        """`close`, and the HTTP connections of the running event loop too."""
        if self._client is not None and self._loop is asyncio.get_running_loop():
            await self._client.close()
            self._client = None
        self.close()

    def check_sources(self, sources: Iterable[str | None]) -> None:
        """Raise `JudgeError` unless reports of all these sources may be sent to this judge (see `governance.py`)."""
        settings = self.settings
        check_sources(sources, self.base_url, settings.judge_trusted_hosts, settings.judge_allow_remote)

    async def check(self) -> None:
        """Ask the endpoint for its models and open the cache: to be called before long work. Sends no report, costs nothing.

        Raises:
            JudgeError: the host cannot be reached, refuses the key, does not serve the model, or the cache is no cache.
        """
        try:
            models = await self.chat().models()
        except CallError as error:
            raise JudgeError(self._explain(error.cause)) from None
        # Azure lists base models, but is asked by the names of deployments.
        if models is not None and self.model not in models and not host_of(self.base_url).endswith(".azure.com"):
            raise JudgeError(f"{self._explain(calls.WRONG_MODEL)}. It serves: {', '.join(models[:10]) or 'none'}")
        if self.cache is not None:
            self.cache.get([])

    async def judge(
        self,
        candidates: Sequence[str],
        references: Sequence[str],
        sources: Sequence[str | None],
        on_result: Callable[[int, JudgeResult], None] | None = None,
    ) -> list[JudgeResult]:
        """Judge pairs of reports; result i belongs to candidates[i] and references[i].

        A pair that occurs several times is asked once, a pair in the cache not at all; those of one reference are asked
        one after another, so that a server's prefix cache holds rubric and reference for them. `on_result(i, result)` is
        called as results arrive.

        Raises:
            ValueError: the lists differ in length.
            JudgeError: the reports of some source may not be sent to this judge; nothing has been sent.
        """
        if not len(candidates) == len(references) == len(sources):
            raise ValueError(f"{len(candidates)} candidates, {len(references)} references, {len(sources)} sources")
        self.check_sources(set(sources))
        results: list[JudgeResult | None] = [None] * len(candidates)

        def settle(rows: list[int], result: JudgeResult) -> None:
            for i in rows:
                results[i] = result
                if on_result is not None:
                    on_result(i, result)
            if result.failure is not None:
                self.failures[result.failure] += len(rows)

        async def ask(pair: tuple[str, str], rows: list[int]) -> None:
            settle(rows, await self._ask_until_answered(*pair))

        place = {reference: i for i, reference in enumerate(dict.fromkeys(references))}
        rows_of_pair: dict[tuple[str, str], list[int]] = {}
        for i in sorted(range(len(candidates)), key=lambda i: place[references[i]]):
            rows_of_pair.setdefault((references[i], candidates[i]), []).append(i)
        self.cached += len(candidates) - len(rows_of_pair)
        keys = {pair: self.cache.key(*pair) for pair in rows_of_pair} if self.cache else {}
        found = self.cache.get(list(keys.values())) if self.cache else {}
        tasks = {}
        for pair, rows in rows_of_pair.items():
            if keys.get(pair) in found:
                self.cached += 1
                settle(rows, JudgeResult(found[keys[pair]], None))
            else:
                tasks[asyncio.create_task(ask(pair, rows))] = rows
        if not tasks:
            return results
        try:
            await asyncio.wait(tasks, timeout=self.settings.judge_batch_timeout)
        finally:
            late = [task for task in tasks if not task.done()]
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        raised = [task.exception() for task in tasks if not task.cancelled()]
        for error in filter(None, raised):
            raise error  # the first of what should never happen
        if self._unkept is not None:
            raise self._unkept
        for task in late:
            settle(tasks[task], JudgeResult(None, calls.BATCH_DEADLINE))
        return results

    async def _ask_until_answered(self, reference: str, candidate: str) -> JudgeResult:
        """One pair, with retries; stores the judgement in the cache before it is returned."""

        async def attempt(again: bool) -> tuple[Judgement, Answer]:
            answer = await self._ask(reference, candidate, again)
            return self.parse(answer.text), answer

        found, cause = await self.until_answered(attempt)
        if found is None:
            return JudgeResult(None, cause)
        judgement, answer = found
        return self.keep(reference, candidate, judgement, answer.prompt_tokens, answer.completion_tokens)

    def keep(
        self, reference: str, candidate: str, judgement: Judgement, prompt_tokens: int, completion_tokens: int
    ) -> JudgeResult:
        """The result of a pair, in the cache before it is returned."""
        if self.cache is not None and self._unkept is None:
            try:
                self.cache.put(reference, candidate, judgement, prompt_tokens, completion_tokens)
            except JudgeError as error:  # a full disk: calls in flight end, no other is paid for and lost
                self._unkept = error
                self.stopped, self._stopped_cause = str(error), calls.CACHE
        return JudgeResult(judgement, None)

    async def until_answered(self, attempt: Callable[[bool], Awaitable[T]]) -> tuple[T | None, str | None]:
        """What one attempt gives, with retries, waits and a slot for each; or None and the cause why there is nothing.

        Args:
            attempt: asks once; its argument says whether an answer was malformed before. Raises `CallError`, or
                `AnswerError` for an answer that is none.
        """
        cause, again = "", False
        for number in range(1 + self.settings.judge_max_retries):
            if number:
                self.retries[cause] += 1
                longest = min(_LONGEST_BACKOFF, self.settings.judge_backoff * 2 ** (number - 1))
                await asyncio.sleep(random.uniform(longest / 2, longest))
            try:
                async with self.chat().slots:
                    if self.stopped is not None:
                        return None, self._stopped_cause
                    return await attempt(again), None
            except WrappedAnswerError:
                cause, again = calls.WRAPPED_ANSWER, True
            except AnswerError:
                cause, again = calls.BAD_ANSWER, True
            except CallError as error:
                cause = error.cause
                again = again or cause == calls.TRUNCATED
                if cause in (calls.WRONG_KEY, calls.WRONG_MODEL, calls.BUDGET, calls.QUOTA):
                    self._stop(cause)
                if error.detail:
                    self._tell(f"{cause}: {error.detail}")
                if not error.again:
                    return None, cause
        return None, cause

    async def _ask(self, reference: str, candidate: str, again: bool) -> Answer:
        """One attempt at one pair."""
        return await self.ask(lambda *form: self._body(reference, candidate, *form, again))

    async def ask(self, body: Callable[[str, bool], dict[str, Any]]) -> Answer:
        """One attempt at one request, in the answer format that the endpoint is known to support; `body` takes that format and
        whether it is to be constrained to it."""
        answer_format, constrained, longest = self.answer_format, self.constrained, self.settings.judge_max_tokens
        try:
            answer = await self.chat().complete(body(answer_format, constrained), longest)
        except CallError as error:
            # Endpoints without structured output refuse the request (400 or 422). Whether that was the reason shows when
            # the same pair is asked without: for the list in place of JSON, for digits by the prompt's words alone.
            if error.cause != calls.BAD_REQUEST or not constrained or self._constraint_works:
                raise
            plain = "list" if answer_format == "json" else answer_format
            answer = await self.chat().complete(body(plain, False), longest)
            if self.constrained:
                log.warning(
                    "%s does not support %s",
                    self.base_url,
                    "JSON schema output: asking for the list format"
                    if answer_format == "json"
                    else "answers constrained by a regular expression: asking for digits without",
                )
                self.answer_format, self.constrained = plain, False
            return answer
        if constrained:
            self._constraint_works = True
        return answer

    def _body(
        self, reference: str, candidate: str, answer_format: str, constrained: bool, again: bool
    ) -> dict[str, Any]:
        """The request for one pair."""
        body = self.request(self.prompt.messages(reference, candidate, answer_format, again))
        if not constrained:
            return body
        return body | (
            {"response_format": RESPONSE_FORMAT}
            if answer_format == "json"
            else {"structured_outputs": STRUCTURED_DIGITS}
        )

    def request(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        """A chat request of these messages by this judge's settings; what judge_extra_body makes null is left out."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "max_completion_tokens": self.settings.judge_max_tokens,
            "temperature": self.settings.judge_temperature,
        }
        return {name: value for name, value in (body | self._extra_body).items() if value is not None}

    def chat(self) -> ChatClient:
        """The client of the running event loop; connections cannot move between loops."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            settings = self.settings
            self._client = ChatClient(
                self.base_url,
                self._api_key,
                settings.judge_concurrency,
                settings.judge_timeout,
                self.spending,
                settings.judge_requests_per_minute,
                settings.judge_tokens_per_minute,
            )
            self._loop = loop
        return self._client

    def _stop(self, cause: str) -> None:
        if self.stopped is None:
            self.stopped = self._explain(cause)
            self._stopped_cause = cause
            log.error("judge stopped: %s", self.stopped)

    def _tell(self, reason: str) -> None:
        """Log a reason why requests fail the first time that it occurs; all are in `reasons`."""
        if reason not in self.reasons:
            log.warning(
                "%s: %s; see judge_extra_body, judge_temperature and judge_answer_format", self.base_url, reason
            )
        self.reasons[reason] += 1

    def _explain(self, cause: str) -> str:
        """One line for a cause that the user can mend."""
        variable = self.settings.judge_api_key_env
        return {
            calls.WRONG_KEY: f"the judge at {self.base_url} refuses the key in the environment variable {variable}; "
            f"set {variable} to a valid key, or judge_api_key_env to the variable that holds it",
            calls.WRONG_MODEL: f"the judge at {self.base_url} does not serve the model {self.model!r}; set judge_model to "
            "one that it serves",
            calls.UNREACHABLE: f"no judge answers at {self.base_url}; start its server, or set judge_base_url (offline "
            "starts the rule-based stand-in)",
            calls.TIMEOUT: f"the judge at {self.base_url} did not answer within {self.settings.judge_timeout:g} seconds; see "
            "that its server is up and idle enough, or raise judge_timeout",
            calls.QUOTA: f"the account at {self.base_url} has no quota or credit left; add some, or ask another judge; answers "
            "so far are in the cache",
            calls.BUDGET: f"the judge's budget is reached ({self.spending}); raise judge_budget_calls, judge_budget_tokens "
            "or judge_budget_dollars to continue; answers so far are in the cache",
        }.get(cause, f"the judge at {self.base_url} cannot be asked: {cause}")
