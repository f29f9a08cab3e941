"""What a report says, by rules: observations with their status, where they are, how large, and what changed.

The graph has RadGraph's form (Jain et al. 2021): entities (tokens, label) with labels `ANAT-DP`, `OBS-DP`, `OBS-DA`,
`OBS-U`, and relations `located_at`, `modify`, `suggestive_of`. It is made by rules over `lexicon.py`, not by a model:
scores from it are named `[offline-rules]`. Tokens are lower case and singular.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from rewards.offline.phrases import (
    CORE,
    MODIFIERS,
    PLACES,
    Finding,
    Item,
    apply_predicates,
    apply_scopes,
    link,
    match_phrases,
    owner_of,
    sides_of,
)
from rewards.radgraph import Entity, Graph

_SENTENCE_END = re.compile(r"(?<!\d)[.;!?]+(?=\s|$)|(?<=\d)[.;!?]+(?=\s+[A-Za-z]|\s*$)|[\n\r]+")
_HEADING = re.compile(r"\b(?:findings|impression|indication|comparison|conclusion)\s*:", re.IGNORECASE)
_TOKEN = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+(?:'[a-z]+)?|[,:/()]")


def sentences(report: str) -> list[str]:
    """The report's sentences in lower case, without section headings; empty ones dropped."""
    text = _HEADING.sub(". ", report).lower()
    return [stripped for part in _SENTENCE_END.split(text) if (stripped := part.strip(" .:"))]


@lru_cache(maxsize=65536)
def _parse(sentence: str) -> tuple[tuple[Finding, ...], Graph]:
    """Findings and graph of one lower-case sentence."""
    words = _TOKEN.findall(sentence)
    items = match_phrases(words)
    apply_scopes(items, words)
    statements = apply_predicates(items, words)
    link(items, words)
    return _findings(items, statements), _graph(items)


def _findings(items: list[Item], statements: list[tuple[Finding, Item | None]]) -> tuple[Finding, ...]:
    found = []
    for core in items:
        if core.term.kind not in CORE:
            continue
        sides, sites, severity, change = set(), set(), "", core.change
        for other in items:
            owner = owner_of(other)
            if owner.target is not core and owner not in core.targets:
                continue
            kind, group = other.term.kind, other.term.group
            sides |= sides_of(other)
            if kind == "anatomy":
                sites.add(other.term.form)
            elif kind == "severity":
                severity = severity or group
            elif kind == "change":
                change = change or group
        finding = Finding(core.term.form, core.conditions, core.status, frozenset(sides), frozenset(sites))
        found.append(replace(finding, severity=severity, change=change))
    for finding, place in statements:
        if place is not None:
            sides = {side for other in items if owner_of(other) is place for side in sides_of(other)}
            finding = replace(finding, sides=frozenset(sides), sites=frozenset((place.term.form,)))
        found.append(finding)
    return tuple(found)


def _graph(items: list[Item]) -> Graph:
    """The sentence's entities; anatomy, observations and their modifiers, "normal" and "clear" among them."""
    nodes = [item for item in items if item.term.kind in CORE | PLACES | MODIFIERS | {"normal"}]
    index = {id(item): position for position, item in enumerate(nodes)}
    relations: list[list[tuple[str, int]]] = [[] for _ in nodes]
    last_core: Item | None = None
    suggested_by: Item | None = None
    for item in items:
        if item.term.kind == "suggestion":
            suggested_by = last_core
        elif item.term.kind in CORE:
            if suggested_by is not None:
                relations[index[id(suggested_by)]].append(("suggestive_of", index[id(item)]))
                suggested_by = None
            last_core = item
    for item in nodes:
        for place in item.targets:
            relations[index[id(item)]].append(("located_at", index[id(place)]))
        if item.target is None:
            continue
        target = index[id(item.target)]
        if item.term.kind in PLACES and item.target.term.kind in CORE:
            relations[target].append(("located_at", index[id(item)]))
        else:
            relations[index[id(item)]].append(("modify", target))
            if item.term.kind in MODIFIERS and item.target.term.kind in CORE:
                item.status = item.target.status
    return tuple(
        Entity(*item.entity, item.start, item.end - 1, tuple(dict.fromkeys(related)))
        for item, related in zip(nodes, relations, strict=True)
    )


def report_findings(report: str) -> tuple[Finding, ...]:
    """All findings of a report, in its order; sentence by sentence, headings ignored."""
    return tuple(finding for sentence in sentences(report) for finding in _parse(sentence)[0])


@lru_cache(maxsize=16384)
def report_graph(report: str) -> Graph:
    """The report's graph, its sentences' entities one after another; empty for a text without known words.

    `start` and `end` count tokens within the sentence; relations do not cross sentences.
    """
    entities: list[Entity] = []
    for sentence in sentences(report):
        offset = len(entities)
        for entity in _parse(sentence)[1]:
            moved = tuple((kind, other + offset) for kind, other in entity.relations)
            entities.append(replace(entity, relations=moved) if moved else entity)
    return tuple(entities)


def entity_places(report: str) -> list[tuple[int, int] | None]:
    """Where each entity of `report_graph(report)` stands: its first character and the one after its last.

    None for an entity whose words are not found again, e.g. where lower case changed the text's length.
    """
    found = list(_TOKEN.finditer(report.lower()))
    same_length = len(report.lower()) == len(report)
    places: list[tuple[int, int] | None] = []
    position = 0
    for sentence in sentences(report):
        spans: list[tuple[int, int] | None] = []
        for word in _TOKEN.findall(sentence):  # the report's words in order, without its headings
            match = next((i for i in range(position, len(found)) if found[i].group() == word), None)
            spans.append(found[match].span() if match is not None and same_length else None)
            position = position if match is None else match + 1
        for entity in _parse(sentence)[1]:
            first, last = spans[entity.start], spans[entity.end]
            places.append((first[0], last[1]) if first and last else None)
    return places


def annotate(reports: Sequence[str]) -> list[Graph]:
    """The graph of each report."""
    return [report_graph(report) for report in reports]
