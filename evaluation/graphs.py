"""Where the entities of a report's graph stand in its text, for the study browser.

The graphs are those that RadGraph-F1 compared: RadGraph's own, or the offline rules', by the metric that scored.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rewards.offline.graph import entity_places
from rewards.radgraph import Graph, RadGraphF1

# First character, the one after the last, label, words as the graph has them. -1, -1: the words are not in the text.
MarkedEntity = tuple[int, int, str, str]


def marked_graphs(metric: RadGraphF1, reports: Sequence[str]) -> list[list[MarkedEntity]]:
    """The entities of each report's graph, in the graph's order."""
    locate = _by_rules if metric.backend.startswith("offline") else _by_words
    return [locate(report, graph) for report, graph in zip(reports, metric.annotate(reports), strict=True)]


def _by_rules(report: str, graph: Graph) -> list[MarkedEntity]:
    """The offline rules name entities in standard forms, but know where they found them."""
    return [
        (*(place or (-1, -1)), entity.label, entity.tokens)
        for entity, place in zip(graph, entity_places(report), strict=True)
    ]


def _by_words(report: str, graph: Graph) -> list[MarkedEntity]:
    """RadGraph counts in words of its own; of several places with an entity's words, the one nearest to its count."""
    words = [match.start() for match in re.finditer(r"\w+|[^\w\s]", report)]
    marked = []
    for entity in graph:
        pattern = r"\s*".join(re.escape(word) for word in entity.tokens.split())
        found = [m.span() for m in re.finditer(rf"(?<!\w){pattern}(?!\w)", report, re.IGNORECASE)]
        wanted = words[min(entity.start, len(words) - 1)] if words else 0
        start, end = min(found, key=lambda span: abs(span[0] - wanted), default=(-1, -1))
        marked.append((start, end, entity.label, entity.tokens))
    return marked
