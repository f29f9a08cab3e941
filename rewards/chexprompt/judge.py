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
import math
import os
import random
import types
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from common.governance import JudgeError, check_sources, host_of, is_loopback
from common.masking import is_secret_name, is_variable_name
from rewards.chexprompt import client as chat
from rewards.chexprompt.cache import JudgeCache, sha256
from rewards.chexprompt.client import Answer, CallError, ChatClient, Spending
from rewards.chexprompt.judgement import Judgement
from rewards.chexprompt.parse import RESPONSE_FORMAT, AnswerError, WrappedAnswerError, parse_answer
from rewards.chexprompt.rubric import load_prompt
from rewards.offline import judge_server

log = logging.getLogger(__name__)

OFFLINE = "offline"
_LONGEST_BACKOFF = 30.0  # seconds
_OWN_FIELDS = {"model", "messages", "response_format", "n", "stream"}  # of a request: not for judge_extra_body


def _key(default: Any, help: str) -> Any:
    """A settings field with its explanation, which `--help` prints."""
    return field(default=default, metadata={"help": help})


def _check_type(name: str, value: Any, kind: Any) -> None:
    """Raise `JudgeError` unless `value`, as a YAML file may give it, is of the field's type."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and type(None) in kinds:
        return
    (kind,) = (k for k in kinds if k is not type(None))
    if kind == list[str]:
        fits, wanted = isinstance(value, list) and all(isinstance(item, str) for item in value), "a list of texts"
    elif kind is float:
        fits, wanted = type(value) in (int, float) and math.isfinite(value), "a number"
    else:  # `type`, because True is an int to isinstance
        fits, wanted = type(value) is kind, {int: "a whole number", str: "a text", bool: "true or false"}[kind]
    if not fits:
        raise JudgeError(f"{name} is {value!r}; it must be {wanted}")


@dataclass
class JudgeSettings:
    """The judge's keys in a YAML file or on a command line."""

    judge_base_url: str = _key(
        "http://127.0.0.1:8000/v1", "OpenAI-compatible endpoint, or `offline` for the rule-based stand-in."
    )
    judge_model: str | None = _key(None, "Model name as the endpoint lists it; not needed for `offline`.")
    judge_api_key_env: str = _key("JUDGE_API_KEY", "Name of the environment variable that holds the key.")
    judge_concurrency: int = _key(64, "Requests in flight at most.")
    judge_timeout: float = _key(60.0, "Seconds for one request.")
    judge_batch_timeout: float | None = _key(900.0, "Seconds for one batch of pairs, retries included; null for none.")
    judge_max_retries: int = _key(5, "How often a failed or malformed answer is asked for again.")
    judge_backoff: float = _key(0.5, "Seconds before the first retry; doubled each time up to 30, with jitter.")
    judge_requests_per_minute: float | None = _key(None, "Limit on requests a minute; null for none.")
    judge_tokens_per_minute: float | None = _key(None, "Limit on tokens a minute, in and out; null for none.")
    judge_budget_calls: int | None = _key(None, "No call is made beyond this number (per process); null for none.")
    judge_budget_tokens: int | None = _key(None, "The same for tokens, in and out.")
    judge_budget_dollars: float | None = _key(None, "The same for money; needs both prices.")
    judge_price_input: float | None = _key(None, "Dollars per million input tokens.")
    judge_price_output: float | None = _key(None, "Dollars per million output tokens.")
    judge_temperature: float | None = _key(0.0, "Sampling temperature; null leaves it out (some models refuse it).")
    judge_max_tokens: int = _key(256, "Longest answer in tokens; one that was cut counts as malformed.")
    judge_extra_body: str | None = _key(
        None,
        'More fields of the request as JSON, e.g. {"chat_template_kwargs": {"enable_thinking": false}}; null leaves one of '
        'the request\'s own out: {"max_completion_tokens": null, "max_tokens": 256}.',
    )
    judge_answer_wrappers: bool = _key(
        False, "Take an answer in a code fence or after </think>, for models that cannot be told to leave these out."
    )
    judge_answer_format: str = _key(
        "auto", "`json` (JSON schema), `list`, or `auto`: json until the endpoint refuses it."
    )
    judge_prompt_file: str | None = _key(None, "Text file with another rubric; null for the built-in one.")
    judge_cache_dir: str | None = _key("outputs/judge_cache", "Folder for the answers; null for no cache.")
    judge_trusted_hosts: list[str] = field(
        default_factory=list, metadata={"help": "Hosts, besides this machine, that may receive credentialed reports."}
    )
    judge_allow_remote: bool = _key(False, "Send reports of any source to any host.")
    judge_max_failure_rate: float = _key(0.2, "Training stops when more than this share of rollouts went unjudged.")
    judge_failure_window: int = _key(1024, "Number of last rollouts over which that share is taken.")

    def __post_init__(self) -> None:
        for name, kind in typing.get_type_hints(type(self)).items():
            _check_type(name, getattr(self, name), kind)
        if not is_variable_name(self.judge_api_key_env):
            raise JudgeError(
                "judge_api_key_env must be the name of an environment variable, such as JUDGE_API_KEY; what it is now is not "
                "shown, since it may be a key"
            )
        for name in ("judge_concurrency", "judge_timeout", "judge_max_tokens", "judge_failure_window"):
            if getattr(self, name) <= 0:
                raise JudgeError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("judge_max_retries", "judge_backoff"):
            if getattr(self, name) < 0:
                raise JudgeError(f"{name} is {getattr(self, name)}; it must not be below 0")
        for name in ("judge_batch_timeout", "judge_requests_per_minute", "judge_tokens_per_minute"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise JudgeError(f"{name} is {value}; it must be above 0, or null for none")
        if not 0 <= self.judge_max_failure_rate <= 1:
            raise JudgeError(f"judge_max_failure_rate is {self.judge_max_failure_rate}; it must be from 0 to 1")
        if self.judge_answer_format not in ("auto", "json", "list"):
            raise JudgeError(f"judge_answer_format is {self.judge_answer_format!r}; it must be auto, json or list")
        if self.judge_budget_dollars is not None and None in (self.judge_price_input, self.judge_price_output):
            raise JudgeError("judge_budget_dollars needs judge_price_input and judge_price_output")

    @classmethod
    def from_mapping(cls, values: Any) -> JudgeSettings:
        """Settings from a mapping that may hold other keys too (a recipe's YAML); unknown `judge_` keys are refused."""
        names = {f.name for f in fields(cls)}
        given = {name: value for name, value in values.items() if name.startswith("judge_")}
        if unknown := sorted(set(given) - names):
            raise JudgeError(f"unknown key(s) {', '.join(unknown)}; the judge's keys are {', '.join(sorted(names))}")
        return cls(**given)


@dataclass(frozen=True)
class JudgeResult:
    """A judgement, or the cause why there is none (one of the constants in `client.py`); exactly one of them is None."""

    judgement: Judgement | None
    failure: str | None


class Judge:
    """Counts errors in candidate reports by asking a language model.

    Attributes:
        name: `chexprompt[MODEL]`.
        model: the model's name.
        prompt_version: name and hash of the prompt.
        fingerprint: sha256 over model, prompt and sampling settings.
        answer_format: `json` or `list`, as asked for now; with `auto` it begins as json.
        spending: calls, tokens and money so far.
        failures: pairs left unjudged so far, by cause.
        retries: requests that had to be repeated so far, by cause.
        reasons: why requests were refused or answers not taken, with status and names of fields, so far.
        cached: pairs answered from the cache, or as a copy of another pair of the same batch, so far.
        stopped: why no further call is made (wrong key, wrong model, budget reached), or None.
    """

    def __init__(self, settings: JudgeSettings, base_url: str, model: str):
        self.settings = settings
        self.base_url = base_url
        self.model = model
        try:
            self.prompt = load_prompt(settings.judge_prompt_file)
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
        if secret := _secret_in(self._extra_body):
            raise JudgeError(
                f"judge_extra_body holds {secret!r}, and would be kept with the results; put the key into the environment "
                "variable that judge_api_key_env names"
            )
        self.name = f"chexprompt[{model}]"
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
            JudgeCache(settings.judge_cache_dir, versioned, self.prompt_version, sampling)
            if settings.judge_cache_dir
            else None
        )
        self.spending = Spending(
            settings.judge_budget_calls,
            settings.judge_budget_tokens,
            settings.judge_budget_dollars,
            settings.judge_price_input,
            settings.judge_price_output,
        )
        self.failures: Counter[str] = Counter()
        self.retries: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.cached = 0
        self.stopped: str | None = None
        self._stopped_cause = ""
        self._unkept: JudgeError | None = None  # why answers could not be kept
        self._api_key = _api_key(settings, base_url)
        self.answer_format = "list" if settings.judge_answer_format == "list" else "json"
        self._json_works = settings.judge_answer_format != "auto"  # known, or not to be questioned
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
            models = await self._chat().models()
        except CallError as error:
            raise JudgeError(self._explain(error.cause)) from None
        # Azure lists base models, but is asked by the names of deployments.
        if models is not None and self.model not in models and not host_of(self.base_url).endswith(".azure.com"):
            raise JudgeError(f"{self._explain(chat.WRONG_MODEL)}. It serves: {', '.join(models[:10]) or 'none'}")
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

        A pair that occurs several times is asked once, a pair in the cache not at all. `on_result(i, result)` is called
        as results arrive.

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

        rows_of_pair: dict[tuple[str, str], list[int]] = {}
        for i, pair in enumerate(zip(references, candidates, strict=True)):
            rows_of_pair.setdefault(pair, []).append(i)
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
            settle(tasks[task], JudgeResult(None, chat.BATCH_DEADLINE))
        return results

    async def _ask_until_answered(self, reference: str, candidate: str) -> JudgeResult:
        """One pair, with retries; stores the judgement in the cache before it is returned."""
        cause, again = "", False
        for attempt in range(1 + self.settings.judge_max_retries):
            if attempt:
                self.retries[cause] += 1
                longest = min(_LONGEST_BACKOFF, self.settings.judge_backoff * 2 ** (attempt - 1))
                await asyncio.sleep(random.uniform(longest / 2, longest))
            try:
                async with self._chat().slots:
                    if self.stopped is not None:
                        return JudgeResult(None, self._stopped_cause)
                    answer = await self._ask(reference, candidate, again)
                judgement = parse_answer(answer.text, self.settings.judge_answer_wrappers)
            except WrappedAnswerError:
                cause, again = chat.WRAPPED_ANSWER, True
                continue
            except AnswerError:
                cause, again = chat.BAD_ANSWER, True
                continue
            except CallError as error:
                cause = error.cause
                again = again or cause == chat.TRUNCATED
                if cause in (chat.WRONG_KEY, chat.WRONG_MODEL, chat.BUDGET, chat.QUOTA):
                    self._stop(cause)
                if error.detail:
                    self._tell(f"{cause}: {error.detail}")
                if error.again:
                    continue
                return JudgeResult(None, cause)
            if self.cache is not None and self._unkept is None:
                try:
                    self.cache.put(reference, candidate, judgement, answer.prompt_tokens, answer.completion_tokens)
                except JudgeError as error:  # a full disk: calls in flight end, no other is paid for and lost
                    self._unkept = error
                    self.stopped, self._stopped_cause = str(error), chat.CACHE
            return JudgeResult(judgement, None)
        return JudgeResult(None, cause)

    async def _ask(self, reference: str, candidate: str, again: bool) -> Answer:
        """One attempt at one pair, in the answer format that the endpoint is known to support."""
        answer_format, longest = self.answer_format, self.settings.judge_max_tokens
        try:
            answer = await self._chat().complete(self._body(reference, candidate, answer_format, again), longest)
        except CallError as error:
            # Endpoints without structured output refuse the request (400 or 422). Whether that was the reason shows when
            # the same pair is asked for the list.
            if error.cause != chat.BAD_REQUEST or answer_format != "json" or self._json_works:
                raise
            answer = await self._chat().complete(self._body(reference, candidate, "list", again), longest)
            if self.answer_format == "json":
                log.warning("%s does not support JSON schema output: asking for the list format", self.base_url)
                self.answer_format = "list"
            return answer
        if answer_format == "json":
            self._json_works = True
        return answer

    def _body(self, reference: str, candidate: str, answer_format: str, again: bool) -> dict[str, Any]:
        """The request for one pair."""
        body = self.request(self.prompt.messages(reference, candidate, answer_format, again))
        return body | ({"response_format": RESPONSE_FORMAT} if answer_format == "json" else {})

    def request(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        """A chat request of these messages by this judge's settings; what judge_extra_body makes null is left out."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "max_completion_tokens": self.settings.judge_max_tokens,
            "temperature": self.settings.judge_temperature,
        }
        return {name: value for name, value in (body | self._extra_body).items() if value is not None}

    def _chat(self) -> ChatClient:
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
            chat.WRONG_KEY: f"the judge at {self.base_url} refuses the key in the environment variable {variable}; "
            f"set {variable} to a valid key, or judge_api_key_env to the variable that holds it",
            chat.WRONG_MODEL: f"the judge at {self.base_url} does not serve the model {self.model!r}; set judge_model to "
            "one that it serves",
            chat.UNREACHABLE: f"no judge answers at {self.base_url}; start its server, or set judge_base_url (offline "
            "starts the rule-based stand-in)",
            chat.TIMEOUT: f"the judge at {self.base_url} did not answer within {self.settings.judge_timeout:g} seconds; see "
            "that its server is up and idle enough, or raise judge_timeout",
            chat.QUOTA: f"the account at {self.base_url} has no quota or credit left; add some, or ask another judge; answers "
            "so far are in the cache",
            chat.BUDGET: f"the judge's budget is reached ({self.spending}); raise judge_budget_calls, judge_budget_tokens "
            "or judge_budget_dollars to go on; answers so far are in the cache",
        }.get(cause, f"the judge at {self.base_url} cannot be asked: {cause}")


def _secret_in(content: Any) -> str | None:
    """The first key of a JSON value, at any depth, that names a secret."""
    parts = content.values() if isinstance(content, dict) else content if isinstance(content, list) else []
    own = [key for key in content if is_secret_name(key)] if isinstance(content, dict) else []
    return next(iter([*own, *filter(None, map(_secret_in, parts))]), None)


def _api_key(settings: JudgeSettings, base_url: str) -> str:
    key = os.environ.get(settings.judge_api_key_env, "").strip()
    if key:
        return key
    if is_loopback(host_of(base_url)):
        return "none"  # local servers want no key, but the client sends some
    raise JudgeError(
        f"the judge at {host_of(base_url)} needs a key: set the environment variable {settings.judge_api_key_env}, or "
        "judge_api_key_env to the variable that holds it"
    )
