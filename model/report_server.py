"""Reports by somebody else's vision–language model, behind an OpenAI-compatible API: the rivals of the paper's comparisons.

What the judge has already is used again: its client, its retries, limits, prices and budget, its rule of which texts and films
may go to which host. A study without an answer has no report, and never an empty one.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml

from foundation.errors import EvaluationError
from foundation.governance import JudgeError, check_sources
from model.engines import TEMPLATE_OF, GenerationSettings, open_images
from model.prompts import build_prompt, is_longitudinal
from rewards.chexprompt.judge import Judge
from rewards.chexprompt.parse import AnswerError
from rewards.chexprompt.settings import JudgeSettings

OURS = "ours"
_PARTS = ("indication", "comparison", "prior")
_NAMES = re.compile(r"\{(image|prior_image|prior_report|prior|indication|comparison)\}")
_KEYS = ("system", "text", *_PARTS)


@dataclass(frozen=True)
class PromptFile:
    """A prompt of a model's own: `text` with {image}, and {indication}, {comparison}, {prior} where the keys of these names give
    the words for a study that has one ({prior_image}, {prior_report} inside `prior`); `system`: a system message."""

    text: str
    system: str = ""
    indication: str = ""
    comparison: str = ""
    prior: str = ""
    sha256: str = ""


def read_prompt(path: Path) -> PromptFile:
    """A YAML file with the keys of `PromptFile`.

    Raises:
        EvaluationError: no such file, an unknown key, or a text without {image}.
    """
    try:
        content = path.read_bytes()
        given = yaml.safe_load(content)
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise EvaluationError(f"prompt {path} cannot be read ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise EvaluationError(f"prompt {path} must be a mapping of {', '.join(_KEYS)} to texts")
    if unknown := sorted(set(map(str, given)) - set(_KEYS)):
        raise EvaluationError(f"prompt {path} has unknown keys {', '.join(unknown)}; known are {', '.join(_KEYS)}")
    if given.get("text", "").count("{image}") != 1:
        raise EvaluationError(f"prompt {path}: text must hold {{image}} once, where the film stands")
    if given.get("prior") and not all(given["prior"].count(name) == 1 for name in ("{prior_image}", "{prior_report}")):
        raise EvaluationError(f"prompt {path}: prior must hold {{prior_image}} and {{prior_report}} once each")
    if "{prior}" in given["text"] and given["text"].index("{prior}") < given["text"].index("{image}"):
        raise EvaluationError(f"prompt {path}: {{image}} comes before {{prior}}, as the films are sent in that order")
    return PromptFile(**given, sha256=hashlib.sha256(content).hexdigest())


def messages(
    study: Mapping[str, Any], settings: GenerationSettings, prompt: PromptFile | None = None
) -> list[dict[str, Any]]:
    """The request's messages, films as PNG in the prompt's order. `prompt`: None is the paper's."""
    films = iter(open_images(study, settings))
    if prompt is None:
        asked = build_prompt(study, settings.longitudinal, settings.context, TEMPLATE_OF[settings.sections])
        content = [part if part["type"] == "text" else _image(next(films)) for part in asked[0]["content"]]
        return [{"role": "user", "content": content}]
    own = {name: [str(study.get(name) or "")] for name in ("indication", "comparison", "prior_report")}
    shown = {
        "indication": settings.context and study.get("indication"),
        "comparison": settings.context and study.get("comparison"),
        "prior": is_longitudinal(study, settings.longitudinal),
    }
    around = {name: _pieces(getattr(prompt, name), own) if there else [] for name, there in shown.items()}
    content: list[dict[str, Any]] = []
    text = ""
    for piece in [*_pieces(prompt.text, around), None]:
        if piece is not None:
            text += piece
            continue
        content += [{"type": "text", "text": text.strip()}] if text.strip() else []
        content += [_image(film) for film in [next(films, None)] if film]
        text = ""
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    return [*system, {"role": "user", "content": content}]


def _pieces(text: str, values: Mapping[str, list[str | None]]) -> list[str | None]:
    """`text` with what stands for its {names}; None for an image. What a study says is put in whole: its braces are text."""
    pieces: list[str | None] = []
    for number, piece in enumerate(_NAMES.split(text)):
        if number % 2 == 0:
            pieces.append(piece)
        elif piece in ("image", "prior_image"):
            pieces.append(None)
        else:
            pieces += values.get(piece, [])
    return pieces


def _image(film: Any) -> dict[str, Any]:
    encoded = BytesIO()
    film.convert("L").save(encoded, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


class ReportServer(Judge):
    """The judge's endpoint, asked for reports.

    Attributes:
        spending, retries, stopped: as the judge's.
    """

    @classmethod
    def open(cls, base_url: str, model: str, options: Mapping[str, Any]) -> ReportServer:
        """A server by settings of the judge's names without `judge_` (concurrency, budget_dollars, trusted_hosts, …).

        Raises:
            EvaluationError: settings that cannot work.
        """
        given = {"max_tokens": 1024, "api_key_env": "SERVER_API_KEY", "timeout": 300.0, "concurrency": 16, **options}
        try:
            settings = JudgeSettings.from_mapping(
                {**{f"judge_{n}": v for n, v in given.items()}, "judge_cache_dir": None, "judge_base_url": base_url}
                | {"judge_model": model}
            )
            return cls.from_settings(settings)
        except (JudgeError, TypeError) as error:
            raise EvaluationError(own_words(error)) from error

    def check_sources(self, sources: Sequence[str | None]) -> None:
        """Raise `JudgeError` unless films and texts of all these sources may be sent there (governance.py)."""
        check_sources(
            sources,
            self.base_url,
            self.settings.judge_trusted_hosts,
            self.settings.judge_allow_remote,
            what="films and texts",
            setting="base_url",
            trusted="trusted_hosts",
        )

    async def report(
        self, study: Mapping[str, Any], settings: GenerationSettings, prompt: PromptFile | None
    ) -> tuple[str | None, str | None]:
        """A study's report, or None and the cause why there is none (`rewards.chexprompt.client`)."""

        async def attempt(again: bool) -> str:
            # Encoded when its turn comes: films of all studies at once would fill the memory.
            body = self.request(messages(study, settings, prompt))
            text = (await self.chat().complete(body, self.settings.judge_max_tokens)).text.strip()
            if not text:
                raise AnswerError("an empty report")
            return text

        return await self.until_answered(attempt)


def own_words(error: Exception) -> str:
    """An error of the judge's machinery in the words of this one."""
    text = " ".join(str(error).split())
    return (
        text.replace("the judge at", "the server at")
        .replace("no judge answers", "no server answers")
        .replace("judge_", "")
    )
