"""The judge's answer, as text and back: a fixed list, JSON, or twelve digits. Anything else is no answer."""

from __future__ import annotations

import json
import re
from typing import Any

from rewards.chexprompt.judgement import ERROR_TYPES, Judgement

# Our bound: no report of this length holds more errors of one type and significance. A larger number is a broken answer.
MAX_COUNT = 20

TYPE_TITLES = (
    "False finding",
    "Omitted finding",
    "Wrong location",
    "Wrong severity",
    "False comparison",
    "Omitted comparison",
)
SECTION_TITLES = ("Clinically significant errors", "Clinically insignificant errors")

# For `response_format`: the strict subset of JSON schema that OpenAI, Azure and vLLM all accept (no minimum or maximum there).
JSON_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"significant": {"$ref": "#/$defs/counts"}, "insignificant": {"$ref": "#/$defs/counts"}},
    "required": ["significant", "insignificant"],
    "additionalProperties": False,
    "$defs": {
        "counts": {
            "type": "object",
            "properties": {name: {"$ref": "#/$defs/count"} for name in ERROR_TYPES},
            "required": list(ERROR_TYPES),
            "additionalProperties": False,
        },
        "count": {"type": "integer", "enum": list(range(MAX_COUNT + 1))},
    },
}
RESPONSE_FORMAT: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "error_counts", "strict": True, "schema": JSON_SCHEMA},
}

# Twelve digits: the six significant counts, then the six others. For vLLM's `structured_outputs`: one digit, one token, so
# Qwen3's answer has 13 tokens with its end.
LARGEST_DIGIT = 9
DIGITS_PATTERN = "[0-9]{12}"
STRUCTURED_DIGITS: dict[str, Any] = {"regex": DIGITS_PATTERN}


class AnswerError(ValueError):
    """An answer that is not in the fixed format; the message says how, without quoting it (it may hold report text)."""


class WrappedAnswerError(AnswerError):
    """An answer in the fixed format, but in a code fence or after `</think>`."""


# What models put around an answer: reasoning that ends in </think> (its beginning may be part of the prompt), a code fence.
_WRAPPERS = re.compile(r"(?:.*</think>)?\s*(?:```[a-z]*[ \t]*\n(?P<fenced>.*?)\n[ \t]*```|(?P<plain>.*))\s*", re.DOTALL)


def format_list(judgement: Judgement) -> str:
    """The list format: two headings, each followed by six lettered counts."""
    lines = []
    for title, counts in zip(SECTION_TITLES, (judgement.significant, judgement.insignificant), strict=True):
        lines.append(f"{title}:")
        lines += [f"{letter}. {name}: {n}" for letter, name, n in zip("ABCDEF", TYPE_TITLES, counts, strict=True)]
    return "\n".join(lines)


def format_json(judgement: Judgement) -> str:
    """The JSON format of `JSON_SCHEMA`."""
    return json.dumps(
        {
            "significant": dict(zip(ERROR_TYPES, judgement.significant, strict=True)),
            "insignificant": dict(zip(ERROR_TYPES, judgement.insignificant, strict=True)),
        }
    )


def format_digits(judgement: Judgement) -> str:
    """Twelve digits: the significant counts A to F, then the insignificant ones; 9 stands for nine or more."""
    return "".join(str(min(count, LARGEST_DIGIT)) for count in (*judgement.significant, *judgement.insignificant))


def parse_answer(text: str, wrappers: bool = False, digits: bool = False) -> Judgement:
    """Counts from an answer as a list or as JSON; where `digits` were asked for, from these alone.

    Args:
        wrappers: take an answer that stands in a code fence or after `</think>` as if it stood alone.
        digits: the answer is to be twelve digits. Nobody else's are read: a bare number is no list that was cut short.

    All are read strictly: white space aside, nothing may precede, follow or be missing, so an answer that quotes a
    report, argues, or was cut short is refused as a whole, never half read.

    Raises:
        WrappedAnswerError: it is wrapped, and right otherwise.
        AnswerError: the answer is empty, or not in the format.
    """
    text = text.strip()
    if not text:
        raise AnswerError("empty answer")
    match = _WRAPPERS.fullmatch(text)
    inside = ((match["fenced"] or match["plain"] or "") if match else "").strip()
    parse = _parse_digits if digits else _parse
    if wrappers or inside == text:
        return parse(inside)
    try:
        return parse(text)
    except AnswerError:
        parse(inside)  # raises where the wrapper is not all that is wrong
        raise WrappedAnswerError("the answer is in a code fence or after </think>") from None


def _parse(text: str) -> Judgement:
    return _parse_json(text) if text.startswith("{") else _parse_list(text)


_LIST_PATTERN = re.compile(
    r"\s*\n\s*".join(
        line
        for title in SECTION_TITLES
        for line in (
            rf"{title}:",
            *(
                rf"{letter}\.[ \t]*{name}:[ \t]*([0-9]{{1,3}})"
                for letter, name in zip("ABCDEF", TYPE_TITLES, strict=True)
            ),
        )
    ),
    re.IGNORECASE,
)


def _parse_list(text: str) -> Judgement:
    match = _LIST_PATTERN.fullmatch(text)
    if match is None:
        raise AnswerError("the answer is not the list of twelve counts")
    counts = [int(group) for group in match.groups()]
    return checked_judgement(counts[:6], counts[6:])


def _parse_digits(text: str) -> Judgement:
    if re.fullmatch(DIGITS_PATTERN, text) is None:
        raise AnswerError("the answer is not twelve digits")
    counts = [int(digit) for digit in text]
    return checked_judgement(counts[:6], counts[6:])


def _parse_json(text: str) -> Judgement:
    try:
        answer = json.loads(text, object_pairs_hook=_object_without_repeated_keys)
    except AnswerError:
        raise
    except (ValueError, RecursionError) as error:  # ValueError: also a number of more digits than Python reads
        raise AnswerError("the answer is not valid JSON") from error
    if set(answer) != {"significant", "insignificant"}:
        raise AnswerError("the answer's JSON has other keys than significant and insignificant")
    counts = []
    for part in ("significant", "insignificant"):
        if not isinstance(answer[part], dict) or set(answer[part]) != set(ERROR_TYPES):
            raise AnswerError(f"the answer's {part} does not hold exactly the six error types")
        counts.append([answer[part][name] for name in ERROR_TYPES])
    return checked_judgement(*counts)


def _object_without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise AnswerError("the answer's JSON repeats a key")
    return dict(pairs)


def checked_judgement(significant: Any, insignificant: Any) -> Judgement:
    """A judgement of two lists of six counts, wherever they come from: an answer, a cache, a file.

    Raises:
        AnswerError: they are not lists of six whole numbers from 0 to `MAX_COUNT`.
    """
    for counts in (significant, insignificant):
        if not isinstance(counts, list) or len(counts) != len(ERROR_TYPES):
            raise AnswerError("the counts are not two lists of six")
    for count in (*significant, *insignificant):
        if type(count) is not int or not 0 <= count <= MAX_COUNT:  # `type`, because True is an int to isinstance
            raise AnswerError(f"a count is not a whole number from 0 to {MAX_COUNT}")
    return Judgement(tuple(significant), tuple(insignificant))
