"""What a reference report says of change: the paper's five temporal categories (Results, figure 3c).

The paper labels the ground truth with GPT-5. Here an LLM judge does it where one is set, and these rules where none is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

CATEGORIES = ("first study", "new development", "no change", "progression", "regression")
RULES_NAME = "offline-rules"
RULES_VERSION = "1"

# Words of change by category. A report that says several things counts as the first of this order that it says, from
# the most to the least consequential; one that says none of them is "no change".
_WORDS = {
    "new development": (
        r"\bnew(?:ly)?\b(?! york)|\bhas (?:developed|appeared)\b|\bhave (?:developed|appeared)\b|\binterval (?:development|"
        r"appearance|placement)\b|\bnow (?:seen|present|visible)\b|\bnot (?:seen|present) (?:previously|before|on the prior)\b"
    ),
    "progression": (
        r"\bworse(?:n(?:ed|ing))?\b|\bincreas(?:ed|ing|e in)\b|\benlarg(?:ing|ed since)\b|\bprogress(?:ed|ion|ing|ive)\b|"
        r"\blarger\b|\bgrown\b|\bgrew\b|\bmore (?:extensive|prominent|pronounced|severe|confluent)\b"
    ),
    "regression": (
        r"\bimprov(?:ed|ing|ement)\b|\bdecreas(?:ed|ing|e in)\b|\bresol(?:ved|ving|ution)\b|\bregress(?:ed|ion)\b|"
        r"\bsmaller\b|\bcleared\b|\bless (?:extensive|prominent|pronounced|severe|confluent)\b|\bno longer\b|\bshrunk\b"
    ),
}
_NEGATED = re.compile(
    r"\b(?:no|without|not|nor)\b(?:\s+(?!longer\b|change\b|significant change\b)[\w-]+){0,3}\s*$", re.IGNORECASE
)


def label_by_rules(reports: Sequence[str], has_prior: Sequence[bool]) -> np.ndarray:
    """Category index of each report: int8 [n], an index of `CATEGORIES`. A study without a prior is a first study."""
    return np.array(
        [_category(text) if prior else 0 for text, prior in zip(reports, has_prior, strict=True)], dtype=np.int8
    )


def _category(report: str) -> int:
    for name, pattern in _WORDS.items():
        for match in re.finditer(pattern, report, re.IGNORECASE):
            sentence = re.split(r"[.;:]", report[: match.start()])[-1]
            if not _NEGATED.search(sentence):  # "no new opacity" is no new development
                return CATEGORIES.index(name)
    return CATEGORIES.index("no change")
