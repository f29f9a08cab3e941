"""The judge's settings: keys of a YAML file or a command line, checked as they are read."""

from __future__ import annotations

import math
import os
import types
import typing
from dataclasses import dataclass, field, fields
from typing import Any

from foundation.governance import JudgeError, host_of, is_loopback
from foundation.masking import is_secret_name, is_variable_name


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
    judge_max_retries: int = _key(5, "How often a failed or malformed answer is requested again.")
    judge_backoff: float = _key(0.5, "Seconds before the first retry; doubled each time up to 30, with jitter.")
    judge_requests_per_minute: float | None = _key(None, "Limit on requests a minute; null for none.")
    judge_tokens_per_minute: float | None = _key(None, "Limit on tokens a minute, in and out; null for none.")
    judge_budget_calls: int | None = _key(None, "No call is made beyond this number (per process); null for none.")
    judge_budget_tokens: int | None = _key(None, "The same for tokens, in and out.")
    judge_budget_dollars: float | None = _key(None, "The same for money; needs both prices.")
    judge_price_input: float | None = _key(None, "Dollars per million input tokens.")
    judge_price_output: float | None = _key(None, "Dollars per million output tokens.")
    judge_price_cached: float | None = _key(
        None, "Dollars per million input tokens that the server reports as cached; null for judge_price_input."
    )
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
        "auto",
        "`json` (JSON schema), `list`, `auto`: json until the endpoint refuses it; or `digits`: twelve digits, 13 "
        "tokens of Qwen3's, constrained by vLLM; asked for by the prompt alone where the endpoint refuses to constrain.",
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
        if self.judge_answer_format not in ("auto", "json", "list", "digits"):
            raise JudgeError(
                f"judge_answer_format is {self.judge_answer_format!r}; it must be auto, json, list or digits"
            )
        if self.judge_budget_dollars is not None and None in (self.judge_price_input, self.judge_price_output):
            raise JudgeError("judge_budget_dollars needs judge_price_input and judge_price_output")
        if self.judge_price_cached is not None and self.judge_price_input is None:
            raise JudgeError("judge_price_cached needs judge_price_input")

    @classmethod
    def from_mapping(cls, values: Any) -> JudgeSettings:
        """Settings from a mapping that may hold other keys too (a recipe's YAML); unknown `judge_` keys are refused."""
        names = {f.name for f in fields(cls)}
        given = {name: value for name, value in values.items() if name.startswith("judge_")}
        if unknown := sorted(set(given) - names):
            raise JudgeError(f"unknown key(s) {', '.join(unknown)}; the judge's keys are {', '.join(sorted(names))}")
        return cls(**given)


def api_key(settings: JudgeSettings, base_url: str) -> str:
    """The key to send to `base_url`: from the environment, which a server on this machine may lack.

    Raises:
        JudgeError: there is none, and the server is another machine's.
    """
    key = os.environ.get(settings.judge_api_key_env, "").strip()
    if key:
        return key
    if is_loopback(host_of(base_url)):
        return "none"  # local servers want no key, but the client sends some
    raise JudgeError(
        f"the judge at {host_of(base_url)} needs a key: set the environment variable {settings.judge_api_key_env}, or "
        "judge_api_key_env to the variable that holds it"
    )


def secret_in(content: Any) -> str | None:
    """The first key of a JSON value, at any depth, that names a secret."""
    parts = content.values() if isinstance(content, dict) else content if isinstance(content, list) else []
    own = [key for key in content if is_secret_name(key)] if isinstance(content, dict) else []
    return next(iter([*own, *filter(None, map(secret_in, parts))]), None)
