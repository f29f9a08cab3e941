"""One request at a time to an OpenAI-compatible endpoint, many at once: bounded, rate-limited, budgeted, and honest.

`ChatClient.complete` makes a single attempt and either returns the answer or raises `CallError` with a cause. Whether
to ask again is the caller's decision, since a malformed answer is requested again just like a failed request.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx2
import openai

from foundation.governance import may_use_proxy, printable
from rewards.chexprompt.calls import (
    BAD_REQUEST,
    BAD_RESPONSE,
    CONNECTION,
    QUOTA,
    RATE_LIMIT,
    REFUSED,
    SERVER_ERROR,
    TIMEOUT,
    TRUNCATED,
    UNKNOWN_FINISH,
    UNREACHABLE,
    WRONG_KEY,
    WRONG_MODEL,
    Answer,
    CallError,
    Pace,
    Spending,
)

log = logging.getLogger(__name__)

# Bounds of what a server may say. An answer has a few kB and some thousand tokens; an endpoint may list many models.
MOST_BYTES = 2 << 20
MOST_TOKENS = 10_000_000
LONGEST_WAIT = 300.0  # seconds: what a server asks for beyond it is not obeyed
# Seconds of waiting at an endpoint's request from which on the user is told.
LONG_WAIT = 10.0
# Seconds between the first requests: a little more than one takes of this process's time (1.6 ms, measured).
SLOT_SPACING = 0.002
# English text has about four characters a token in common vocabularies; three keeps reservations on the safe side.
CHARACTERS_PER_TOKEN = 3.0


# A film of 512 pixels is 250 to 1,500 tokens, by model.
TOKENS_PER_IMAGE = 1_500

# What servers call an answer that is whole (OpenAI, vLLM: stop; Together: eos; TGI: eos_token; Anthropic: the other two),
# one that was cut, one that was withheld, and a fault of theirs.
FINISHED = ("stop", "eos", "eos_token", "end_turn", "stop_sequence")
CUT = ("length", "max_tokens")
WITHHELD = ("content_filter", "safety", "refusal", "recitation")
BROKEN_OFF = ("error", "abort", "cancelled")
# Codes of an account that has nothing left, which OpenAI sends with the status of a rate limit.
QUOTA_CODES = ("insufficient_quota", "billing_hard_limit_reached", "insufficient_balance", "insufficient_funds")


class ChatClient:
    """Chat completions from one endpoint, bound to the event loop it is first used in.

    Args:
        base_url: the endpoint, e.g. `http://127.0.0.1:8000/v1`.
        api_key: sent as bearer token; never printed.
        concurrency: requests in flight at most: the size of the semaphore `slots`.
        timeout: seconds for one request, from sending to the last byte.
        requests_per_minute, tokens_per_minute: limits, None for none.
        spending: counted here, and stopped at its budget.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        concurrency: int,
        timeout: float,
        spending: Spending,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
    ):
        self.timeout = timeout
        self.spending = spending
        # Slots open one by one: requests that start together stay together, answer after answer, and queue for this
        # process's time each round, while requests that start spaced keep a server busy all the time.
        self.slots = asyncio.Semaphore(1)
        for i in range(1, concurrency):
            asyncio.get_running_loop().call_later(i * SLOT_SPACING, self.slots.release)
        self._requests = Pace(requests_per_minute)
        self._tokens = Pace(tokens_per_minute)
        self._not_before = 0.0
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=api_key,
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(
                limits=httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
                timeout=timeout,
                # A redirect could carry reports to another host, and so could a proxy (governance.py).
                follow_redirects=False,
                trust_env=may_use_proxy(base_url),
                # Compressed, a bounded body could still fill the memory.
                headers={"Accept-Encoding": "identity"},
                event_hooks={"response": [_bound]},
            ),
        )

    async def models(self) -> list[str] | None:
        """Names of the models that the endpoint offers, control characters escaped; None where it does not list them.

        Raises:
            CallError: it cannot be reached, or refuses the key.
        """
        try:
            return model_names(_json(await self._send(self._client.get("/models", cast_to=httpx2.Response))))
        except CallError as error:
            if error.cause in (BAD_REQUEST, WRONG_MODEL, BAD_RESPONSE):
                return None
            raise

    async def complete(self, body: dict[str, Any], longest_answer: int = 0) -> Answer:
        """One attempt at one chat completion; `body` is the request of the chat completions API, `longest_answer` the tokens
        to reserve where it sets no limit.

        The caller holds one of `slots`, so that what it decides while waiting for one is not out of date when it asks.

        Raises:
            CallError: no answer with a text, with the cause.
        """
        characters = sum(_characters(message["content"]) for message in body["messages"])
        reserved = (
            math.ceil(characters / CHARACTERS_PER_TOKEN),
            body.get("max_completion_tokens") or body.get("max_tokens") or longest_answer,
        )
        while (pause := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(pause)
        self.spending.reserve(*reserved)
        spent = (0, 0)
        try:
            await self._requests.wait()
            await self._tokens.wait(sum(reserved))
            spent = reserved  # from here on the server may charge, whatever becomes of the answer
            response = await self._send(
                self._client.post("/chat/completions", body=body, cast_to=httpx2.Response), body
            )
            reply = _json(response)
            spent = _usage(reply) or reserved
            cached = _cached(reply)
            self.spending.count_cached(Answer("", *spent, cached))
            return Answer(_text(reply), *spent, cached)
        except CallError as error:
            if error.status is not None or error.cause == UNREACHABLE:
                spent = (0, 0)  # refused, or never sent: not charged
            raise
        finally:
            self.spending.settle(reserved, spent)
            self._tokens.correct(sum(spent) - sum(reserved))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _send(self, request: Any, body: Mapping[str, Any] | None = None) -> httpx2.Response:
        """Await a request; every way in which it can fail becomes a `CallError`."""
        try:
            return await asyncio.wait_for(request, self.timeout)
        except (asyncio.TimeoutError, openai.APITimeoutError):
            raise CallError(TIMEOUT) from None
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, CallError):  # of `_bound`
                raise CallError(error.__cause__.cause) from None
            never_sent = isinstance(error.__cause__, (httpx2.ConnectError, httpx2.ConnectTimeout))
            raise CallError(UNREACHABLE if never_sent else CONNECTION) from None
        except openai.APIStatusError as error:
            status = error.status_code
            seconds = _retry_after(error.response.headers)
            if seconds is not None and status in (429, 503):
                # Limits hold for the account, so everybody waits, not only the call that was told.
                if seconds > LONG_WAIT and self._not_before < time.monotonic():
                    log.warning("%s asks to wait for %.0f seconds (status %d)", self._client.base_url, seconds, status)
                self._not_before = max(self._not_before, time.monotonic() + seconds)
            code, fields, too_long = _refusal(error.response, body)
            if status == 402 or code in QUOTA_CODES:
                raise CallError(QUOTA, again=False, status=status) from None
            if status in (401, 403):
                raise CallError(WRONG_KEY, again=False, status=status) from None
            if status == 404:
                raise CallError(WRONG_MODEL, again=False, status=status) from None
            if status == 429:
                raise CallError(RATE_LIMIT, status=status) from None
            if status in (408, 409) or status >= 500:
                raise CallError(SERVER_ERROR, status=status) from None
            # A redirect is not followed; asking again would not change it.
            detail = f"status {status}" + (f", code {code}" if code else "")
            detail += f"; the server names {', '.join(fields)}" if fields else ""
            detail += "; prompt and judge_max_tokens together are longer than the model's context" if too_long else ""
            cause = BAD_REQUEST if status >= 400 else BAD_RESPONSE
            raise CallError(cause, again=False, status=status, detail=detail) from None
        except openai.OpenAIError:
            raise CallError(BAD_RESPONSE) from None


def _characters(content: str | list[dict[str, Any]]) -> float:
    """Length of a message for reservations: of its texts, and an image as so many characters as its tokens stand for."""
    if isinstance(content, str):
        return len(content)
    image = TOKENS_PER_IMAGE * CHARACTERS_PER_TOKEN
    return sum(len(part["text"]) if part["type"] == "text" else image for part in content)


def _json(response: httpx2.Response) -> dict[str, Any]:
    try:
        body = json.loads(response.content)
    except (ValueError, RecursionError):  # ValueError: also a number of more digits than Python reads
        raise CallError(BAD_RESPONSE) from None
    if not isinstance(body, dict):
        raise CallError(BAD_RESPONSE)
    return body


def _text(reply: dict[str, Any]) -> str:
    """The text of the first and only choice, if the server finished it."""
    try:
        (choice,) = reply["choices"]
        text, reason, refusal = choice["message"]["content"], choice["finish_reason"], choice["message"].get("refusal")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CallError(BAD_RESPONSE) from None
    reason = reason.lower() if isinstance(reason, str) else None
    if reason in CUT:
        raise CallError(TRUNCATED)
    if refusal or reason in WITHHELD:
        raise CallError(REFUSED)
    if reason is None or not (text is None or isinstance(text, str)):
        raise CallError(BAD_RESPONSE)
    if reason in BROKEN_OFF:
        raise CallError(SERVER_ERROR)
    if reason not in FINISHED:
        detail = f"{reason} is none of {', '.join(FINISHED)}" if re.fullmatch(r"[a-z_]{1,40}", reason) else ""
        raise CallError(UNKNOWN_FINISH, again=False, detail=detail)
    return text or ""


def _refusal(response: httpx2.Response, body: Mapping[str, Any] | None) -> tuple[str, list[str], bool]:
    """The code that an error response has, which fields of the request it names, and whether it speaks of the model's context
    length. Its other words are not told: they may repeat a report."""
    try:
        text = response.text
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return "", [], False
    error = answer.get("error", answer) if isinstance(answer, dict) else {}
    codes = [error.get(key) for key in ("code", "type")] if isinstance(error, dict) else []
    named = [code.lower() for code in codes if isinstance(code, str) and re.fullmatch(r"[A-Za-z_]{1,40}", code)]
    code = next((code for code in named if code in QUOTA_CODES), named[0] if named else "")
    # "This model's maximum …" names no field.
    fields = [key for key in body or {} if re.search(rf"(?<!\w){re.escape(key)}(?![\w'’])", text) and key != "messages"]
    return code, fields, bool(re.search(r"\b(?:context length|max_model_len)\b", text, re.IGNORECASE))


def _usage(reply: dict[str, Any]) -> tuple[int, int] | None:
    usage = reply.get("usage")
    if not isinstance(usage, dict):
        return None
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    return counts if all(type(count) is int and 0 <= count <= MOST_TOKENS for count in counts) else None


def _cached(reply: dict[str, Any]) -> int | None:
    """`usage.prompt_tokens_details.cached_tokens`; None where the server reports none that can be."""
    usage = reply.get("usage")
    details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    counted = _usage(reply)
    return cached if type(cached) is int and counted is not None and 0 <= cached <= counted[0] else None


def _retry_after(headers: httpx2.Headers) -> float | None:
    """Seconds to wait, `LONGEST_WAIT` at most, by `Retry-After` (a number or an HTTP date) or OpenAI's `retry-after-ms`; None
    where there is neither."""
    try:
        if "retry-after-ms" in headers:
            seconds = float(headers["retry-after-ms"]) / 1000
        elif headers.get("retry-after", "").strip().isdigit():
            seconds = float(headers["retry-after"])
        elif "retry-after" in headers:
            seconds = email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time()
        else:
            return None
    except (ValueError, TypeError, OverflowError, OSError):
        return None
    return min(max(0.0, seconds), LONGEST_WAIT) if math.isfinite(seconds) else None


def model_names(body: Any) -> list[str] | None:
    """The names in a server's list of models, control characters escaped; None where it is no such list."""
    listed = body.get("data") if isinstance(body, dict) else None
    if not isinstance(listed, list):
        return None
    names = [model.get("id") if isinstance(model, dict) else None for model in listed]
    return [printable(name) for name in names if isinstance(name, str)]


async def _bound(response: httpx2.Response) -> None:
    """Refuse a compressed body, and end one that grows beyond `MOST_BYTES` (a hook of the HTTP client)."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise CallError(BAD_RESPONSE)
    response.stream = _BoundedStream(response.stream)


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: Any) -> None:
        self.stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = 0
        async for part in self.stream:
            read += len(part)
            if read > MOST_BYTES:
                raise CallError(BAD_RESPONSE)
            yield part

    async def aclose(self) -> None:
        await self.stream.aclose()
