"""What a request to `serve` asks for: of the page a study, of an OpenAI client a conversation. All of it is untrusted."""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Mapping
from typing import Any

from foundation.errors import EvaluationError
from model.prompts import plain_text
from model.report_writer import ReportWriter

MOST_FILMS = 2  # a film and its prior: what models are trained on, and all that vLLM makes room for
LONGEST_TEXT = 20_000  # characters of all texts together; the longest reports have about 5,000
_ROLES = ("system", "user", "assistant")


class BadRequest(EvaluationError):
    """A request that is not one."""


def asked_study(writer: ReportWriter, body: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The study of the page's request: `image`, `prior_image` in base64; `indication`, `comparison`, `prior_report`; `anyway`.

    Raises:
        EvaluationError: not such a request, or films as of `ReportWriter.write`.
    """
    texts = {name: _text(body.get(name) or "", name) for name in ("indication", "comparison", "prior_report")}
    _check_length(texts.values())
    films = {name: _decoded(body[name], name) for name in ("image", "prior_image") if body.get(name)}
    if "image" not in films:
        raise BadRequest("no film")
    if ("prior_image" in films) != bool(texts["prior_report"].strip()):
        raise BadRequest("a prior is shown with its film and its report: give both, or neither")
    prior = (films["prior_image"], texts["prior_report"]) if "prior_image" in films else None
    anyway = body.get("anyway") is True
    return writer.study(films["image"], texts["indication"], texts["comparison"], prior, anyway)


def chat(writer: ReportWriter, name: str, body: Mapping[str, Any]) -> tuple[dict[str, Any], int | None, bool]:
    """What the engine is shown of a chat completion's request, its own limit of tokens, and whether it is to be streamed.

    Raises:
        EvaluationError: not such a request, what this model does not do, or films as of `ReportWriter.write`.
    """
    if body.get("model") != name:
        raise BadRequest(f"no such model; this server has {name}")
    if body.get("temperature") or body.get("n") not in (None, 1) or body.get("tools"):
        raise BadRequest("reports are greedy: temperature 0, n 1, no tools")
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    if limit is not None and (type(limit) is not int or limit < 1):
        raise BadRequest("max_completion_tokens must be a whole number of at least 1")
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise BadRequest("messages must be a list of at least one")
    messages, films = [], []
    for message in given:
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise BadRequest(f"a message has a role ({', '.join(_ROLES)}) and content")
        parts = message.get("content")
        parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
        if not isinstance(parts, list):
            raise BadRequest("content is a text or a list of parts")
        messages.append({"role": message["role"], "content": [_part(part, films) for part in parts]})
    _check_length(part["text"] for message in messages for part in message["content"] if part["type"] == "text")
    if not 1 <= len(films) <= MOST_FILMS:
        raise BadRequest(f"{len(films)} films; a request has one, or one and its prior")
    return writer.conversation(messages, films), limit, body.get("stream") is True


def _part(part: Any, films: list[bytes]) -> dict[str, str]:
    """A part as the chat template has it; a film's bytes go to `films`. No address is ever fetched."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        return {"type": "text", "text": plain_text(_text(part.get("text"), "text"))}
    if kind != "image_url" or not isinstance(part.get("image_url"), dict):
        raise BadRequest("a part is of type text or image_url")
    url = part["image_url"].get("url")
    head, comma, content = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not (comma and head.startswith("data:") and head.endswith(";base64")):
        raise BadRequest("an image_url is data:…;base64,…: nothing is fetched")
    films.append(_decoded(content, "image_url"))
    return {"type": "image"}


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRequest(f"{name} must be a text")
    return value.encode("utf-8", "replace").decode()  # half a surrogate pair is no text


def _check_length(texts: Any) -> None:
    if sum(map(len, texts)) > LONGEST_TEXT:
        raise BadRequest(f"texts of more than {LONGEST_TEXT:,} characters")


def _decoded(content: Any, name: str) -> bytes:
    encoded = _text(content, name)
    try:
        return b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"{name} is not base64") from error
