"""A film in, a report out.

    from model.report_writer import ReportWriter

    writer = ReportWriter("outputs/demo/rl_step2/final")
    print(writer.write("film.dcm", indication="Cough.", prior=("earlier.png", "Findings: … Impression: …")).report)

Films are prepared exactly as those of the training data were (the checkpoint says how), and the prompt is training's. For
research: nothing here is made, tested or allowed for diagnosis.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from data_prep.film_check import why_no_film
from data_prep.headings import parse_free_text
from data_prep.images import ImageError, contrast, encode_film, read_image_file, scaled_film
from data_prep.sections import single_spaced
from data_prep.study import report_text
from foundation.errors import EvaluationError
from model.check import check_model_folder
from model.engines import GenerationSettings, engine_here, load_engine
from model.films import PAPERS, form_of_model
from model.fingerprint import model_fingerprint

NOTICE = "For research, not for diagnosis: written by a model, checked by nobody."

# A path, a file's bytes, or an image that is open.
Film = str | Path | bytes | Image.Image


class FilmRefused(EvaluationError):
    """A picture that is no frontal chest film, as far as can be known."""


@dataclass(frozen=True)
class Written:
    """A report and how it was made.

    Attributes:
        report: the model's text, as `python -m evaluation generate` writes it for the same study.
        findings, impression: its sections; None where it has none.
        truncated: it was cut at max_new_tokens.
        seconds: that preparing the films and generation took, loading the model left out.
        overridden: what spoke against the film, where it was shown anyway.
    """

    report: str
    findings: str | None
    impression: str | None
    truncated: bool
    seconds: float
    overridden: list[str] = field(default_factory=list)


class ReportWriter:
    """Writes reports with one model, which is loaded once, by transformers or vLLM.

    Args:
        model: checkpoint folder or hub name.
        settings: as for `python -m evaluation generate`. Without a reference that says which sections it has, both are asked
            for: `sections` must not be `available`.

    Attributes:
        made_by: model, its fingerprint, the form of its films and the settings.

    Raises:
        EvaluationError, RecipeError: no such model, or no such engine here.
    """

    def __init__(self, model: str | Path, settings: GenerationSettings | None = None) -> None:
        settings = engine_here(settings or GenerationSettings(sections="findings_impression"))
        if settings.sections == "available":
            raise EvaluationError(
                "there is no reference whose sections are available; ask for findings_impression or findings"
            )
        check_model_folder(str(model))
        self.settings = settings
        self.form = form_of_model(model) or PAPERS
        self.made_by = {
            "model": str(model),
            "model_sha256": model_fingerprint(str(model)),
            "films": str(self.form),
            **asdict(settings),
        }
        self._engine = load_engine(str(model), settings)
        self._write = self._engine(settings)

    def write(
        self,
        image: Film,
        indication: str | None = None,
        comparison: str | None = None,
        prior: tuple[Film, str] | None = None,
        anyway: bool = False,
    ) -> Written:
        """The report of one film.

        Args:
            prior: the earlier film and its report, of which findings and impression are shown, as in training.
            anyway: write also of what is no frontal chest film, as far as can be known.

        Raises:
            FilmRefused: such a film, without `anyway`.
            EvaluationError: an unreadable file, or a prior without a report.
        """
        started = time.monotonic()
        study, overridden = self.study(image, indication, comparison, prior, anyway)
        ((report, truncated),) = self._write([study])
        return written(report, truncated, time.monotonic() - started, overridden)

    def write_all(self, studies: Sequence[Mapping[str, Any]]) -> list[tuple[str, bool]]:
        """The reports of several studies that `study` made, each with whether it was cut."""
        return self._write(studies)

    def stream(
        self, study: Mapping[str, Any], on_text: Callable[[str], None], max_new_tokens: int | None = None
    ) -> tuple[str, bool]:
        """The report of a study that `study` or `conversation` made, and whether it was cut.

        Args:
            on_text: is given the report piece by piece, together exactly the report; what it raises ends generation.
            max_new_tokens: fewer than the settings' own.
        """
        text, told = "", 0

        def piece(new: str) -> None:
            nonlocal text, told
            text = (text + new).lstrip()
            ready = text.rstrip()  # space at the end may be the report's last: it waits for what follows
            if len(ready) > told:
                start, told = told, len(ready)
                on_text(ready[start:])

        limit = min(max_new_tokens or self.settings.max_new_tokens, self.settings.max_new_tokens)
        ((report, truncated),) = self._engine(replace(self.settings, max_new_tokens=limit))([study], on_text=piece)
        if report[told:]:
            on_text(report[told:])
        return report, truncated

    def conversation(self, messages: Sequence[Mapping[str, Any]], films: Sequence[Film]) -> dict[str, Any]:
        """Messages in the chat template's form with one `{"type": "image"}` a film, as what the engine is shown.

        Raises:
            FilmRefused, EvaluationError: as of `write`.
        """
        shown = [self._film(film, anyway=False)[0] for film in films]
        return {"study_id": "the request", "folder": "", "messages": list(messages), "message_images": shown}

    def study(
        self,
        image: Film,
        indication: str | None = None,
        comparison: str | None = None,
        prior: tuple[Film, str] | None = None,
        anyway: bool = False,
        study_id: str = "the film",
    ) -> tuple[dict[str, Any], list[str]]:
        """What the engine is shown, films prepared, and what was overridden; arguments and errors as of `write`."""
        film, overridden = self._film(image, anyway)
        study: dict[str, Any] = {"study_id": study_id, "folder": "", "image": film}
        study |= {"indication": single_spaced(indication), "comparison": single_spaced(comparison)}
        if prior is not None:
            report = prior_text(prior[1])
            if not report:
                raise EvaluationError(f"{study_id}: the prior has no report; a prior is shown with both, or not at all")
            prior_film, more = self._film(prior[0], anyway)
            study |= {"prior_image": prior_film, "prior_report": report}
            overridden += [f"prior: {reason}" for reason in more]
        return study, overridden

    def _film(self, film: Film, anyway: bool) -> tuple[bytes, list[str]]:
        """The film's bytes as a prepared folder would hold them, and what spoke against it."""
        name = str(film) if isinstance(film, (str, Path)) else "the film"
        form = self.form.settings()
        try:
            content = film_bytes(film)
            reason = why_no_film(content)
            scaled = scaled_film(content, form)
        except ImageError as error:
            raise EvaluationError(f"{name}: {error}") from error
        reasons = [f"this is {reason}"] if reason else []
        try:
            contrast(scaled)
        except ImageError as error:
            reasons.append(str(error))
        if reasons and not anyway:
            raise FilmRefused(f"{name}: {'; '.join(reasons)}: no frontal chest film, so no report; --anyway writes one")
        return encode_film(scaled, form), reasons


def written(report: str, truncated: bool, seconds: float, overridden: Sequence[str] = ()) -> Written:
    """A report with its sections cut out."""
    sections = parse_free_text(report)
    return Written(
        report, sections.get("findings"), sections.get("impression"), truncated, round(seconds, 2), list(overridden)
    )


def film_bytes(film: Film) -> bytes:
    """A film's file. An open image is what it shows, without loss.

    Raises:
        ImageError: missing, or not to be read.
    """
    if isinstance(film, bytes):
        return film
    if isinstance(film, Image.Image):
        encoded = BytesIO()
        film.save(encoded, "TIFF" if film.mode == "F" else "PNG")
        return encoded.getvalue()
    return read_image_file(film)


def prior_text(report: str) -> str | None:
    """A prior report in the form that models are trained on: findings and impression, or all of it where it has neither."""
    sections = parse_free_text(report)
    return report_text(sections.get("findings"), sections.get("impression")) or single_spaced(report)
