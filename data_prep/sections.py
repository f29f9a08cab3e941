"""Free-text reports into indication, comparison, findings and impression.

Headers and exceptions are data: section_rules.yaml. The method is that of the MIMIC-CXR maintainers' parser (MIT-LCP/mimic-cxr,
txt/section_parser.py): a header is upper-case words and a colon at the start of a line; of several sections of one name the
last that is not empty counts; the last paragraph stands for the findings only where findings and impression are both
absent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

SECTIONS = ("indication", "comparison", "findings", "impression")
# The sections that are kept raw as well, with their line breaks, which ReXrank's metrics count: section → its raw text's name.
RAW = {"findings": "findings_raw", "impression": "impression_raw"}
_RULES = Path(__file__).with_name("section_rules.yaml")
_HEADER = r"^[ \t]*([A-Z][A-Z ()/,&-]*?|{names})[ \t]*:(?=\s|$)"


@lru_cache(maxsize=1)
def rules() -> Mapping[str, Any]:
    """The content of section_rules.yaml."""
    return yaml.safe_load(_RULES.read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def _header() -> re.Pattern:
    # Known names count as headers in any case ("Findings:"), others only in capitals.
    names = sorted(rules()["names"], key=len, reverse=True)
    return re.compile(_HEADER.format(names="(?i:" + "|".join(map(re.escape, names)) + ")"), re.MULTILINE)


@lru_cache(maxsize=4096)
def section_name(header: str) -> str:
    """The section that `header` (without its colon) begins; the header in lower case where it is none that is known."""
    name = " ".join(header.lower().split())
    if name in rules()["names"]:
        return rules()["names"][name]
    for word in rules()["contains"]:
        if word in name:
            return word
    return "findings" if any(view in name for view in rules()["views"]) else name


def iterate_sections(text: str) -> Iterator[tuple[str, str]]:
    """(section name, its text) in the report's order; text before the first header is `preamble`."""
    start, name = 0, "preamble"
    for match in _header().finditer(text):
        yield name, text[start : match.start()]
        start, name = match.end(), section_name(match[1])
    yield name, text[start:]


def parse_report(text: str, study_id: str | None = None) -> dict[str, str | None]:
    """The report's indication, comparison, findings and impression, white space made single, and the latter two raw (RAW);
    None where absent.

    Args:
        study_id: MIMIC-CXR study (digits), for reports that have a rule of their own.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    sections: dict[str, str] = {}
    name = body = ""
    for name, body in iterate_sections(text):
        if body.strip():
            sections[name] = body
    if study_id in rules()["findings_at"]:
        start, end = rules()["findings_at"][study_id]
        sections = {k: v for k, v in sections.items() if k not in ("findings", "impression")}
        sections["findings"] = text[start:end]
    elif study_id in rules()["findings_under"]:
        sections["findings"] = sections.pop(rules()["findings_under"][study_id], "")
    elif "findings" not in sections and "impression" not in sections:
        # What follows the first paragraph (an indication, a title) of the last section is what was seen.
        first, *rest = re.split(r"\n[ \t]*\n", body.strip("\n"), maxsplit=1)
        sections[name] = first
        sections["findings"] = "".join(rest)
    for name, other in rules()["stand_ins"].items():
        sections.setdefault(name, sections.get(other, ""))
    report = {name: single_spaced(sections.get(name)) for name in SECTIONS}
    return report | {raw: raw_section(sections.get(name)) for name, raw in RAW.items()}


def with_raw(report: Mapping[str, str | None]) -> dict[str, str | None]:
    """Sections as a table or a file has them, single-spaced, with those of RAW as they are."""
    single = {name: single_spaced(report.get(name)) for name in SECTIONS}
    return single | {raw: report[name] if single[name] else None for name, raw in RAW.items()}


def raw_section(text: str | None) -> str | None:
    """A free-text section as ReXrank's files have it: line breaks kept, without white space at the lines' ends and the
    text's; None where nothing is left."""
    return "\n".join(line.strip() for line in text.strip().splitlines()) or None if isinstance(text, str) else None


def single_spaced(text: str | None) -> str | None:
    """`text` with every run of white space as one space; None where nothing is left."""
    return " ".join(text.split()) or None if isinstance(text, str) else None
