"""What calls to a judge cost, how fast they may go, and why one failed."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

# Causes of failure: a small fixed set, so that they can be counted. None holds text of a report or of a server.
RATE_LIMIT = "rate limit"
SERVER_ERROR = "server error"
TIMEOUT = "timeout"
UNREACHABLE = "host unreachable"
CONNECTION = "connection dropped"
BAD_RESPONSE = "malformed response"
BAD_ANSWER = "malformed answer"
WRAPPED_ANSWER = "answer in a code fence or after </think> (judge_answer_wrappers: true takes it)"
UNKNOWN_FINISH = "unknown finish_reason"
TRUNCATED = "truncated answer"
REFUSED = "answer refused"
BAD_REQUEST = "request refused"
WRONG_KEY = "wrong key"
WRONG_MODEL = "wrong model"
BUDGET = "budget reached"
QUOTA = "quota used up"
BATCH_DEADLINE = "batch deadline"
CACHE = "cache not writable"


class CallError(Exception):
    """A request without a usable answer.

    Attributes:
        cause: one of the constants of this module.
        again: whether asking again may help.
        status: the HTTP status, if there was one.
        detail: what more can be told of it without text of a report or a server: names of fields, codes; or empty.
    """

    def __init__(self, cause: str, again: bool = True, status: int | None = None, detail: str = ""):
        super().__init__(cause)
        self.cause = cause
        self.again = again
        self.status = status
        self.detail = detail


@dataclass(frozen=True)
class Answer:
    """Text of an answer and what it took; `cached_tokens` of the prompt's tokens came from the server's prefix cache, None
    where it does not say."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None


@dataclass
class Spending:
    """What has been spent, and how much may be.

    Calls are requests sent, failed ones included. Tokens are those that the server reports; where a request fails after
    it was sent, or reports none, the estimate is counted, so that a budget errs on the side of spending less.
    Dollars follow from the tokens by the prices (dollars per million tokens): `cached_price` for those of the prompt that the
    server reports as cached, where there is one.

    Attributes:
        cached_tokens: prompt tokens that the server reports as taken from its prefix cache.
        reported_tokens: prompt tokens of the answers that report it; 0 where none does.
    """

    max_calls: int | None = None
    max_tokens: int | None = None
    max_dollars: float | None = None
    input_price: float | None = None
    output_price: float | None = None
    cached_price: float | None = None
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reported_tokens: int = 0
    reserved_prompt_tokens: int = field(default=0, repr=False)
    reserved_completion_tokens: int = field(default=0, repr=False)

    def dollars(self, prompt_tokens: int | None = None, completion_tokens: int | None = None) -> float | None:
        """Money for these numbers of tokens (by default those spent); None without prices."""
        if self.input_price is None or self.output_price is None:
            return None
        prompt = self.prompt_tokens if prompt_tokens is None else prompt_tokens
        completion = self.completion_tokens if completion_tokens is None else completion_tokens
        cheaper = 0.0 if self.cached_price is None else self.cached_tokens * (self.input_price - self.cached_price)
        return (prompt * self.input_price + completion * self.output_price - cheaper) / 1e6

    @property
    def cached_share(self) -> float | None:
        """Share of the prompts' tokens, in [0, 1], that came from the server's prefix cache; None where it does not say."""
        return self.cached_tokens / self.reported_tokens if self.reported_tokens else None

    def logged(self, of: str = "judge") -> dict[str, float]:
        """What a training log shows of it, by names that begin with `of`: of this process, so far."""
        shown = {"calls": self.calls, "tokens_in": self.prompt_tokens, "tokens_out": self.completion_tokens}
        shown |= {"cached_input": self.cached_share, "dollars": self.dollars()}
        return {f"{of}/{name}": float(value) for name, value in shown.items() if value is not None}

    def count_cached(self, answer: Answer) -> None:
        """Add what a server says of its prefix cache."""
        if answer.cached_tokens is not None:
            self.cached_tokens += answer.cached_tokens
            self.reported_tokens += answer.prompt_tokens

    def reserve(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Set aside one call of at most this size.

        Raises:
            CallError: with what is spent and reserved already, it would exceed the budget.
        """
        prompt = self.prompt_tokens + self.reserved_prompt_tokens + prompt_tokens
        completion = self.completion_tokens + self.reserved_completion_tokens + completion_tokens
        dollars = self.dollars(prompt, completion)
        if (
            (self.max_calls is not None and self.calls + 1 > self.max_calls)
            or (self.max_tokens is not None and prompt + completion > self.max_tokens)
            or (self.max_dollars is not None and dollars is not None and dollars > self.max_dollars)
        ):
            raise CallError(BUDGET, again=False)
        self.calls += 1
        self.reserved_prompt_tokens += prompt_tokens
        self.reserved_completion_tokens += completion_tokens

    def settle(self, reserved: tuple[int, int], spent: tuple[int, int]) -> None:
        """Replace a reservation (prompt and completion tokens) by what was really spent."""
        self.reserved_prompt_tokens -= reserved[0]
        self.reserved_completion_tokens -= reserved[1]
        self.prompt_tokens += spent[0]
        self.completion_tokens += spent[1]

    def __str__(self) -> str:
        dollars = self.dollars()
        money = "" if dollars is None else f", ${dollars:.2f}"
        cached = "" if self.cached_share is None else f" ({self.cached_share:.0%} of the input cached)"
        return f"{self.calls} calls, {self.prompt_tokens + self.completion_tokens} tokens{cached}{money}"


class Pace:
    """Spaces events evenly: `wait(cost)` returns when the costs so far fit the rate, without bursts."""

    def __init__(self, per_minute: float | None):
        self.seconds_per_unit = 60.0 / per_minute if per_minute else 0.0
        self._free_at = 0.0

    async def wait(self, cost: float = 1.0) -> None:
        if not self.seconds_per_unit:
            return
        now = time.monotonic()
        start = max(now, self._free_at)
        self._free_at = start + cost * self.seconds_per_unit
        await asyncio.sleep(start - now)

    def correct(self, difference: float) -> None:
        """Add to the costs so far, once the true cost of an event is known; negative gives time back."""
        self._free_at += difference * self.seconds_per_unit
