"""The phrases of one sentence: what the lexicon knows of it, negated or not, and which phrase belongs to which."""

from __future__ import annotations

from dataclasses import dataclass, field

from rewards.offline.lexicon import LEXICON, LONGEST_PHRASE, NORMAL_CONDITIONS, STATE_CONDITIONS, Term

PRESENT, ABSENT, UNCERTAIN = "present", "absent", "uncertain"
LABELS = {PRESENT: "OBS-DP", ABSENT: "OBS-DA", UNCERTAIN: "OBS-U"}
ANATOMY_LABEL = "ANAT-DP"
_VERBS = frozenset(
    [
        "is",
        "are",
        "was",
        "were",
        "appears",
        "appear",
        "remains",
        "remain",
        "has",
        "have",
        "demonstrates",
        "demonstrate",
        "shows",
        "show",
    ]
)
_REPORTED = frozenset(
    [
        "seen",
        "identified",
        "present",
        "noted",
        "visualized",
        "evident",
        "demonstrated",
        "detected",
        "appreciated",
        "found",
    ]
)
_SEPARATORS = frozenset((",", "and", "or", "with", "nor"))
_PREPOSITIONS = frozenset(["in", "at", "of", "on", "within", "over", "overlying", "along", "the", "a", "an"])
CORE = frozenset(("observation", "device", "state"))
MODIFIERS = frozenset(("severity", "change", "descriptor"))
PLACES = frozenset(("anatomy", "side", "position"))


@dataclass(frozen=True)
class Finding:
    """One observation of a report.

    Attributes:
        name: its standard form in singular, e.g. `effusion`, `endotracheal tube`, `enlarged`.
        conditions: CheXpert conditions that it is of; empty for an observation outside the fourteen.
        status: present, absent or uncertain.
        sides: subset of {right, left}; empty where no side is said.
        sites: standard forms of the anatomy that it is said to be in.
        severity: mild, moderate, severe or "".
        change: unchanged, worse, improved, new, resolved or "".
        is_statement: a statement of normality ("heart is normal", "no acute process") rather than a named finding.
    """

    name: str
    conditions: tuple[str, ...]
    status: str
    sides: frozenset[str] = frozenset()
    sites: frozenset[str] = frozenset()
    severity: str = ""
    change: str = ""
    is_statement: bool = False


@dataclass
class Item:
    """A matched phrase: its term, token position, clause, and what the scopes made of it."""

    term: Term
    start: int
    end: int
    clause: int = 0
    status: str = PRESENT
    conditions: tuple[str, ...] = ()
    target: Item | None = None
    change: str = ""
    targets: list[Item] = field(default_factory=list)

    @property
    def entity(self) -> tuple[str, str]:
        label = ANATOMY_LABEL if self.term.kind in PLACES else LABELS[self.status]
        return (self.term.form, label)


def match_phrases(words: list[str]) -> list[Item]:
    """Longest phrases of the lexicon, left to right."""
    items, position = [], 0
    while position < len(words):
        for length in range(min(LONGEST_PHRASE, len(words) - position), 0, -1):
            term = LEXICON.get(tuple(words[position : position + length]))
            if term is not None:
                if term.kind != "skip":
                    items.append(Item(term, position, position + length, conditions=term.conditions))
                position += length
                break
        else:
            position += 1
    return items


def _ends_scope(position: int, words: list[str], starts: dict[int, Item]) -> bool:
    """Whether the separator at `position` (comma, and, with) ends a negation or uncertainty: a new clause with its own
    verb follows, or a graded finding that is not part of an or-list ("no pneumothorax, small left effusion")."""
    rest: list[str] = []
    for word in words[position + 1 :]:
        if word in (",", "but", "however", "although"):
            break
        rest.append(word)
    if not rest or rest[0] in ("or", "nor"):
        return False
    verb = next((i for i, word in enumerate(rest) if word in _VERBS), None)
    if verb is not None and "or" not in rest[:verb] and not _REPORTED & set(rest[verb:]):
        return True
    tail = words[position + 1 :]
    if "or" in tail or "nor" in tail:
        return False
    following = position + 1
    while following < len(words) and (item := starts.get(following)) and item.term.kind == "side":
        following = item.end
    item = starts.get(following)
    return item is not None and item.term.kind in ("severity", "change") and item.term.form != "large"


def apply_scopes(items: list[Item], words: list[str]) -> None:
    """Give every item its clause and status: cues reach forward to the end of their clause, or back to its start."""
    starts = {item.start: item for item in items}
    clause, scope, position, verb_seen = 0, PRESENT, 0, False
    while position < len(words):
        item = starts.get(position)
        if item is None:
            word = words[position]
            verb_seen = verb_seen or word in _VERBS
            separator = word in (",", "and", "with") or words[position : position + 2] == ["or", "the"]
            if word == "there" or (
                separator and (verb_seen or scope != PRESENT) and _ends_scope(position, words, starts)
            ):
                scope, verb_seen = PRESENT, False
                clause += word != "with"
            position += 1
            continue
        kind = item.term.kind
        item.clause = clause
        before = [other for other in items if other.clause == clause and other.start < position]
        if kind == "break":
            clause, scope, verb_seen = clause + 1, PRESENT, False
        elif kind == "negation":
            scope = ABSENT
        elif kind == "uncertainty" or (kind == "suggestion" and item.term.group == "uncertain"):
            scope = UNCERTAIN if scope == PRESENT else scope
            if item.term.form == "versus" or words[item.start] in ("versus", "vs"):
                for other in reversed(before):
                    if other.term.kind in CORE:
                        other.status = UNCERTAIN if other.status == PRESENT else other.status
                        break
        elif kind in ("negation_after", "uncertainty_after"):
            for other in before:
                if other.status == PRESENT or kind == "negation_after":
                    other.status = ABSENT if kind == "negation_after" else UNCERTAIN
        elif kind == "resolved":
            if words[item.end - 1] == "of" or not any(other.term.kind in CORE | {"anatomy"} for other in before):
                scope = ABSENT  # "resolution of …", "resolved left effusion"
            elif scope != ABSENT:
                for other in before:
                    if other.term.kind in CORE:
                        other.status, other.change = ABSENT, "resolved"
        else:
            item.status = scope
        position = item.end


def apply_predicates(items: list[Item], words: list[str]) -> list[tuple[Finding, Item | None]]:
    """Bind "normal", "enlarged", "blunted" … to the anatomy that they are said of, and give states their condition.

    Returns the statements of normality, each with the place that it is about.
    """
    statements: list[tuple[Finding, Item | None]] = []
    pending: list[Item] = []
    forward: Item | None = None
    clause, previous_end = 0, 0
    for item in items:
        gap = words[previous_end : item.start]
        if item.clause != clause:
            clause, pending, forward = item.clause, [], None
        if forward is not None and _VERBS & set(gap):
            forward = None
        kind = item.term.kind
        if kind == "severity" and item.term.form == "large":
            _large_heart(item, items, pending, gap)
            kind = item.term.kind
        if kind == "anatomy":
            if forward is None or not _bind(forward, [item], statements):
                pending.append(item)
        elif kind in ("normal", "state"):
            forward = None
            if not _bind(item, pending, statements):
                forward = item
            pending = []
        elif kind == "statement":
            if item.status == ABSENT:
                bone = any(other.term.group == "bone" for other in pending)
                conditions = ("Fracture",) if bone else ()
                statements.append((Finding(item.term.form, conditions, ABSENT, is_statement=True), None))
            pending, forward = [], None
        elif kind in ("observation", "device"):
            if forward is not None and forward.term.form == "borderline" and item.status == PRESENT:
                item.status = UNCERTAIN  # "borderline cardiomegaly"
            pending, forward = [], None
        previous_end = item.end
    return statements


def _large_heart(item: Item, items: list[Item], pending: list[Item], gap: list[str]) -> None:
    """ "The heart is large", "large heart": here the size is the finding."""
    following = next((other for other in items if other.start == item.end), None)
    said_of_pending = bool(_VERBS & set(gap)) and any(other.term.group == "heart" for other in pending)
    if said_of_pending or (following is not None and following.term.group == "heart"):
        item.term = Term("state", "enlarged", (), "heart")


def _bind(predicate: Item, anatomy: list[Item], statements: list[tuple[Finding, Item | None]]) -> bool:
    """Say `predicate` of those of `anatomy` that it can be said of; False where there is none."""
    normal = predicate.term.kind == "normal"
    bound = False
    for place in anatomy:
        group = place.term.group
        if normal:
            if place.term.form in ("chest", "thorax") and predicate.status == PRESENT:
                statements.append((Finding("normal", (), ABSENT, is_statement=True), None))
            elif predicate.status == PRESENT and group in NORMAL_CONDITIONS:
                finding = Finding("normal", (NORMAL_CONDITIONS[group],), ABSENT, is_statement=True)
                statements.append((finding, place))
        elif group in predicate.term.group.split():
            predicate.conditions += (STATE_CONDITIONS[group],)
            if predicate.term.form == "borderline" and predicate.status == PRESENT:
                predicate.status = UNCERTAIN
        else:
            continue
        predicate.targets.append(place)
        bound = True
    return bound


def _distance(item: Item, other: Item, items: list[Item], words: list[str]) -> tuple[int, int]:
    """How far apart two items are: words between them, prepositions free, separators and cues dear; ties go to what
    follows."""
    first, second = (item, other) if item.start < other.start else (other, item)
    covered = set()
    cost = 0
    for between in items:
        if first.end <= between.start and between.end <= second.start:
            covered.update(range(between.start, between.end))
            cost += 0 if between.term.kind in PLACES or between.term.kind in MODIFIERS else 4
    for position in range(first.end, second.start):
        if position not in covered:
            word = words[position]
            cost += 4 if word in _SEPARATORS or word in _VERBS else 0 if word in _PREPOSITIONS else 1
    return cost, int(other.start < item.start)


def link(items: list[Item], words: list[str]) -> None:
    """Give places and modifiers the observation (else the anatomy) that they belong to."""
    cores = [item for item in items if item.term.kind in CORE]
    for index, item in enumerate(items):
        kind = item.term.kind
        if kind not in PLACES and kind not in MODIFIERS:
            continue
        following = items[index + 1] if index + 1 < len(items) else None
        adjacent = following is not None and following.start == item.end
        if kind in ("side", "position") and adjacent and following.term.kind in PLACES:
            item.target = following  # "left lower lobe": a place that narrows the next one
            continue
        if kind == "severity" and following is not None and following.term.kind == "change":
            continue  # "slightly worsened" grades the change, not the finding
        said_normal = any(other.clause == item.clause and other.term.kind == "normal" for other in items)
        near = [core for core in cores if core.clause == item.clause] or ([] if said_normal else cores)
        if near:
            item.target = min(near, key=lambda core: _distance(item, core, items, words))
        elif kind in MODIFIERS:
            places = [other for other in items if other.term.kind == "anatomy" and other.clause == item.clause]
            item.target = min(places, key=lambda place: _distance(item, place, items, words)) if places else None


def sides_of(item: Item) -> set[str]:
    if item.term.kind != "side":
        return set()
    return {"right", "left"} if item.term.group == "bilateral" else {item.term.group}


def owner_of(item: Item) -> Item:
    """The last place in a chain such as left → lower → lobe."""
    while item.target is not None and item.target.term.kind in PLACES:
        item = item.target
    return item
