"""Free-text reports of any origin into sections: exports of other hospitals (`custom`), and what models write.

Where sections.py follows MIMIC-CXR's lay-out, this goes by names: a heading is one of the names of heading_rules.yaml where
a sentence can begin, and all else, sub-headings such as `LUNGS:` among it, stays inside its section. A heading is

- a name and a colon at the start of the text or a line, after the end of a sentence, or in the middle of one where its
  capitals set it apart (`Lungs clear Impression: Normal.`, but not `other findings: …`);
- a name and a dash at the start of a line or a sentence, or a name alone on a line, not all in small letters;
- a name in capitals before a word that is not, and not after one (`Cough FINDINGS The lungs are clear.`).

Around a name stars, hashes and the like may stand, a number before it, and brackets after it (`IMPRESSION (final):`). A
section that is there several times is joined; an addendum is left out or appended, as the rules say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from data_prep import sections
from data_prep.sections import RAW, SECTIONS, raw_section, single_spaced

JOINT = "findings and impression"
PREAMBLE = "preamble"
ADDENDUM = "addendum"
BEGIN = "report begins"
SIGNATURE = "signature"
KEYS = ("headings", "ignored", "joint", "joiners", "addendum", "addenda", "not_after", "stand_ins")
_CHOICES = {"joint": ("findings", "impression"), "addenda": ("leave_out", "append")}
_RULES = Path(__file__).with_name("heading_rules.yaml")
_MARKS = r"[ \t#*_>=•·|\-–—]*"
_BEFORE = re.compile(rf"{_MARKS}(?:\(?\d{{1,2}}[.)])?{_MARKS}")
_SENTENCE_END = re.compile(r"[.!?;:)\]。！？；：](?:[ \t\"'*_]|\d{1,2}[.)])*$")
_BRACKETS = r"(?:[ \t]*[(\[][^()\[\]\n]{1,40}[)\]])?"
_COLON = re.compile(rf"{_BRACKETS}[ \t*_]*[:：][ \t*_]*")
_DASH = re.compile(rf"{_BRACKETS}[*_]*(?:[ \t]+[-–—]+[ \t]*|[-–—]+[ \t]+)")
_ALONE = re.compile(rf"{_BRACKETS}[ \t#*_=\-–—]*(?=\n|$)")
_SPACE = re.compile(rf"{_BRACKETS}[ \t]+(?=[\"'(]?(?:[^\W\d_][^\W\d_]*[a-zß-öø-ÿ]|\d))")
_ADDENDUM_LINE = re.compile(r"[^:\n.]{0,60}(?::[ \t]*|(?=\n|$))")  # ADDENDUM #2 BY A. SMITH:
_LAST_WORD = re.compile(r"([^\W_]+)[^\w.!?;:。！？；：\n]*$")
_UNKNOWN = re.compile(r"^[ \t*_#]*([^\W\d_][^\W_]*(?:[ \t/&,()\-]+[^\W_]+){0,5}\)?)[ \t*_]*[:：]", re.MULTILINE)
_TITLE = re.compile(r"\b(report|radiographs?|x-?rays?|views?)\b", re.IGNORECASE)
_PARAGRAPHS = re.compile(r"\n[ \t]*\n")


class HeadingRulesError(ValueError):
    """Rules that cannot be: one line, which key and what it must be."""


@dataclass(frozen=True)
class HeadingRules:
    """What counts as a heading. Fields as heading_rules.yaml explains them; `names` is heading (small letters) → section."""

    names: Mapping[str, str]
    joint: str
    joiners: tuple[str, ...]
    addendum: tuple[str, ...]
    addenda: str
    not_after: frozenset[str]
    stand_ins: Mapping[str, str]

    @cached_property
    def pattern(self) -> re.Pattern:
        """A name, or several joined, anywhere in a text; `addendum` is the group of an addendum's."""
        one = _alternatives([*self.names, *self.addendum])
        words = _alternatives(self.joiners)
        joined = rf"(?:[ \t]*(?:{words})[ \t]*(?:{one})(?!\w))*"
        return re.compile(rf"(?<![\w\-])(?:{one})(?!\w){joined}", re.IGNORECASE)

    @cached_property
    def parts(self) -> re.Pattern:
        return re.compile(rf"(?<!\w)(?:{_alternatives([*self.names, *self.addendum])})(?!\w)", re.IGNORECASE)

    def section(self, heading: str) -> str:
        """The section that a heading of `pattern` begins."""
        name = " ".join(heading.lower().split())
        if name in self.addendum:
            return ADDENDUM
        parts = {self.names.get(" ".join(m[0].lower().split()), ADDENDUM) for m in self.parts.finditer(heading)}
        if {"findings", "impression"} <= parts:
            return JOINT
        if name in self.names:
            return self.names[name]
        first = self.parts.search(heading)
        return self.names.get(" ".join(first[0].lower().split()), ADDENDUM) if first else name


def _alternatives(names: Any) -> str:
    """A pattern of any of `names`, the longest first, with any white space for theirs."""
    return "|".join(r"[ \t]+".join(map(re.escape, name.split())) for name in sorted(names, key=len, reverse=True))


@lru_cache(maxsize=1)
def built_in() -> HeadingRules:
    """The rules of heading_rules.yaml."""
    return read_rules({})


def read_rules(given: Any) -> HeadingRules:
    """The built-in rules with `given` (the form of heading_rules.yaml, any key absent): headings are added, the rest replaces.

    Raises:
        HeadingRulesError: an unknown key, or a value of another kind.
    """
    default: dict[str, Any] = yaml.safe_load(_RULES.read_text(encoding="utf-8"))
    if not isinstance(given, Mapping):
        raise HeadingRulesError(f"sections must be a mapping with any of {', '.join(KEYS)}")
    if unknown := [str(key) for key in given if key not in KEYS]:
        raise HeadingRulesError(f"sections: unknown key {unknown[0]}; it takes {', '.join(KEYS)}")
    rules = {**default, **given}
    for key in ("ignored", "joiners", "addendum", "not_after"):
        _texts(key, rules[key])
    for key, choices in _CHOICES.items():
        if rules[key] not in choices:
            raise HeadingRulesError(f"sections: {key} is {rules[key]!r}; it must be {' or '.join(choices)}")
    for key in ("headings", "stand_ins"):
        if not isinstance(rules[key], Mapping):
            raise HeadingRulesError(f"sections: {key} must be a mapping of sections")
    for name, other in rules["stand_ins"].items():
        if name not in SECTIONS or not isinstance(other, str):
            raise HeadingRulesError(f"sections: stand_ins must give a section for any of {', '.join(SECTIONS)}")
    # Of two joined names, and of addenda, the rules here decide.
    names = {
        name: section
        for name, section in sections.rules()["names"].items()
        if section != ADDENDUM and not re.search(r"/| and ", name)
    }
    for headings in (default["headings"], given.get("headings", {})):
        for section, spellings in headings.items():
            _texts(f"headings: {section}", spellings)
            names |= {_lower(spelling): str(section) for spelling in spellings}
    for name in rules["ignored"]:
        names.pop(_lower(name), None)
    return HeadingRules(
        names,
        rules["joint"],
        tuple(map(_lower, rules["joiners"])),
        tuple(map(_lower, rules["addendum"])),
        rules["addenda"],
        frozenset(map(_lower, rules["not_after"])),
        dict(rules["stand_ins"]),
    )


def _texts(key: str, value: Any) -> None:
    if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
        raise HeadingRulesError(f"sections: {key} must be a list of words, such as [Befund, Beurteilung]")


def _lower(text: str) -> str:
    return " ".join(text.lower().split())


class Piece(NamedTuple):
    """A heading and what stands under it: the section it names, where its heading begins in the text, the text below."""

    section: str
    begin: int
    body: str


def iterate_sections(text: str, rules: HeadingRules | None = None) -> Iterator[Piece]:
    """The report in its order; text before the first heading is `preamble`."""
    rules = rules or built_in()
    begin, start, section = 0, 0, PREAMBLE
    for match in rules.pattern.finditer(text):
        if match.start() < start:
            continue
        found = rules.section(match[0])
        if (span := _heading_span(text, match, found, rules)) is not None:
            yield Piece(section, begin, text[start : span[0]])
            (begin, start), section = span, found
    yield Piece(section, begin, text[start:])


def _heading_span(text: str, match: re.Match, section: str, rules: HeadingRules) -> tuple[int, int] | None:
    """Where the heading that `match` names begins and ends, marks and numbers around it included; None where it is none."""
    name, end = match[0], match.end()
    line_start = text.rfind("\n", 0, match.start()) + 1
    before = text[line_start : match.start()]
    begins_line = _BEFORE.fullmatch(before) is not None
    # A number that begins the line goes with the heading; one in the middle of it with the text before.
    start = line_start if begins_line else match.start()
    before_it = text[max(0, line_start - 60) : line_start].removesuffix("\n") if begins_line else before
    word = _LAST_WORD.search(before_it)
    last = word[1] if word else ""
    if last.lower() in rules.not_after and (not begins_line or name[0].islower()):
        return None
    begins = begins_line or _SENTENCE_END.search(before) is not None
    capital = not name[0].islower()
    if colon := _COLON.match(text, end):
        apart = capital and last and (not last[0].isupper() or (_upper(name) and not _upper(last)))
        return (start, colon.end()) if begins or apart else None
    if section == ADDENDUM and _upper(name) and begins:
        return start, (_ADDENDUM_LINE.match(text, end) or match).end() if begins_line else end
    if section == SIGNATURE and begins and capital and name.lower().endswith("by"):
        return start, end
    if _upper(name) and (begins or (last and not _upper(last))) and (space := _SPACE.match(text, end)):
        return start, space.end()
    if begins and capital:
        if dash := _DASH.match(text, end):
            return start, dash.end()
        if begins_line and (alone := _ALONE.match(text, end)):
            return start, alone.end()
    return None


def _upper(text: str) -> bool:
    return text == text.upper() and text != text.lower()


def parse_free_text(text: str, rules: HeadingRules | None = None) -> dict[str, str | None]:
    """The report's sections as `sections.parse_report` gives them: single-spaced, findings and impression raw as well."""
    rules = rules or built_in()
    pieces = list(iterate_sections(text.replace("\r\n", "\n").replace("\r", "\n"), rules))
    parts: dict[str, list[str]] = {}
    addenda: dict[str, list[str]] = {}
    reported = in_addendum = False
    for number, (section, _, body) in enumerate(pieces):
        if section == ADDENDUM:
            in_addendum = True
        elif section == BEGIN:
            section, in_addendum = PREAMBLE, False
        elif in_addendum and not reported:
            # One that stands before the report ends where that begins: at FINAL REPORT or, without it, the next heading.
            in_addendum = any(later == BEGIN for later, *_ in pieces[number:])
        section = rules.joint if section == JOINT else section
        reported = reported or (not in_addendum and section in ("findings", "impression"))
        _add(addenda if in_addendum else parts, section, body)
    if rules.addenda == "append":
        for section, bodies in addenda.items():
            for body in bodies:
                _add(parts, "impression" if section == ADDENDUM else section, body)
    if "findings" not in parts:
        _find_unheaded(parts)
    joined = {name: "\n".join(bodies) for name, bodies in parts.items()}
    for name, other in rules.stand_ins.items():
        if name not in joined and other in joined:
            joined[name] = joined[other]
    report = {name: single_spaced(joined.get(name)) for name in SECTIONS}
    return report | {raw: raw_section(joined.get(name)) for name, raw in RAW.items()}


def findings_of(report: str) -> str:
    """The findings of a report that a model wrote: all under `Findings` or a joint heading; without either, what stands
    before the impression, which may be the whole text or nothing."""
    pieces = list(iterate_sections(report))
    if found := [piece.body.strip() for piece in pieces if piece.section in ("findings", JOINT)]:
        return "\n".join(filter(None, found))
    end = next((piece.begin for piece in pieces if piece.section == "impression"), len(report))
    return report[:end].strip()


def _add(parts: dict[str, list[str]], section: str, body: str) -> None:
    if body.strip() and body.strip() not in map(str.strip, parts.get(section, [])):
        parts.setdefault(section, []).append(body)


def _find_unheaded(parts: dict[str, list[str]]) -> None:
    """Add to `parts` the findings of a report that does not name them, taken from the section where they stand."""
    outside = [name for name in parts if name not in ("impression", ADDENDUM, SIGNATURE)]
    for name in outside:
        for number, body in enumerate(parts[name]):
            for match in _UNKNOWN.finditer(body):
                if any(view in match[1].lower() for view in sections.rules()["views"]):
                    parts[name][number], findings = body[: match.start()], body[match.end() :]
                    parts["findings"] = [findings]
                    return
    if text := _without_titles("\n".join(parts.get(PREAMBLE, [])), "impression" in parts):
        parts["findings"] = [text]
        return
    for name in reversed(outside):
        first, *rest = _PARAGRAPHS.split(parts[name][-1].strip("\n"), maxsplit=1)
        if name != PREAMBLE and rest and rest[0].strip():
            parts[name][-1] = first
            parts["findings"] = rest
            return


def _without_titles(text: str, impression: bool) -> str:
    """The text before the first heading without the lines that are a title or an item of an identification (`MRN: 7`); the
    whole text where nothing else would be left and there is no impression either."""
    lines = text.split("\n")
    body = [line for line in lines if line.strip() and not (_UNKNOWN.match(line) and line.rstrip()[-1] not in ".!?")]
    while body and not body[0].rstrip().endswith((".", "!", "?")):
        rest = "\n".join(body[1:])
        if not ((_upper(body[0]) and rest and not _upper(rest)) or _TITLE.search(body[0])):
            break
        del body[0]
    if not body:
        return "" if impression else text.strip()
    return "\n".join(body)


def unknown_headings(text: str, rules: HeadingRules | None = None) -> list[tuple[str, str]]:
    """(what looks like a heading and is none, the section in which it stays), in the report's order, in small letters."""
    found = []
    for section, _, body in iterate_sections(text.replace("\r\n", "\n"), rules):
        found += [(_lower(match[1]), section) for match in _UNKNOWN.finditer(body)]
    return found
