"""RadGraph-F1: how well the entities and relations of two reports' graphs agree.

Four levels, which are four different numbers: `combined` is what ReXrank and RadCliQ use; `simple`, `partial` and
`complete` are the rewards of the radgraph package (Delbrouck et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rewards.metric import Metric

LEVELS = ("combined", "simple", "partial", "complete")


@dataclass(frozen=True)
class Entity:
    """One entity of a graph.

    Attributes:
        tokens: its words, joined by spaces.
        label: RadGraph's, e.g. `ANAT-DP`, `OBS-DP`, `OBS-DA`, `OBS-U` (radgraph-xl spells them out).
        start: index of its first token in the tokenised report.
        end: index of its last token.
        relations: (type, index of the other entity in the graph); types `modify`, `located_at`, `suggestive_of`.
    """

    tokens: str
    label: str
    start: int
    end: int
    relations: tuple[tuple[str, int], ...] = ()


Graph = tuple[Entity, ...]
"""A report's graph: its entities in order of their position."""


def f1(candidate: set, reference: set) -> float:
    """2 · |both| / (|candidate| + |reference|); 0 where nothing is shared or a set is empty."""
    both = len(candidate & reference)
    return 2 * both / (len(candidate) + len(reference)) if both else 0.0


def _entities(graph: Graph) -> set:
    return {(entity.tokens, entity.label) for entity in graph}


def _relations(graph: Graph) -> set:
    return {
        ((entity.tokens, entity.label), (graph[other].tokens, graph[other].label), kind)
        for entity in graph
        for kind, other in entity.relations
    }


def _partial(graph: Graph) -> set:
    return {(entity.tokens, entity.label, bool(entity.relations)) for entity in graph}


def _complete(graph: Graph) -> set:
    # As radgraph 0.1.18 has it: lower case only where there is a relation.
    plain = {(entity.tokens, entity.label) for entity in graph if not entity.relations}
    related = {
        (entity.tokens.lower(), entity.label, kind, graph[other].tokens.lower())
        for entity in graph
        for kind, other in entity.relations
    }
    return plain | related


def radgraph_f1(candidate: Graph, reference: Graph, level: str = "combined") -> float:
    """RadGraph-F1 of two graphs in [0, 1].

    `combined` is (entity F1 + relation F1) / 2 over sets of (tokens, label) and of ((tokens, label), (tokens, label),
    type), case-sensitive (CXR-Report-Metric, `compute_entity_and_relation_f1`): two equal graphs without relations
    score 0.5. The other levels are radgraph 0.1.18's `compute_reward`. An empty graph on either side scores 0.
    """
    if level == "combined":
        return (f1(_entities(candidate), _entities(reference)) + f1(_relations(candidate), _relations(reference))) / 2
    view = {"simple": _entities, "partial": _partial, "complete": _complete}[level]
    return f1(view(candidate), view(reference))


class RadGraphF1(Metric):
    """RadGraph-F1 of each pair: float32 [n] in [0, 1]; 0 where either text is empty or has no entity."""

    def __init__(
        self, annotate: Callable[[Sequence[str]], list[Graph]], backend: str, fingerprint: str, level: str = "combined"
    ) -> None:
        """`annotate` gives each text's graph; `backend` is `real` or a stand-in's name."""
        if level not in LEVELS:
            raise ValueError(f"RadGraph level {level!r} is unknown; one of {', '.join(LEVELS)}")
        self.annotate, self.level = annotate, level
        self.name = "radgraph" if level == "combined" else f"radgraph_{level}"
        if backend.startswith("offline"):
            self.name += f"[{backend}]"
        self.backend, self.fingerprint = backend, fingerprint

    def score(self, candidates: list[str], references: list[str]) -> np.ndarray:
        graphs = self.annotate([*candidates, *references])
        pairs = zip(graphs[: len(candidates)], graphs[len(candidates) :], strict=True)
        return np.array([radgraph_f1(candidate, reference, self.level) for candidate, reference in pairs])
