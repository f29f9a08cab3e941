"""What a judge says of one pair of reports."""

from __future__ import annotations

from dataclasses import dataclass

# The six error types of CheXprompt (Zambrano Chaves et al. 2025), in the order of its answer format.
ERROR_TYPES = (
    "false_finding",  # A: a finding in the candidate that the reference does not have
    "omitted_finding",  # B
    "location",  # C: wrong location or position of a finding
    "severity",  # D
    "false_comparison",  # E: a change to a prior that the reference does not mention
    "omitted_comparison",  # F
)


@dataclass(frozen=True)
class Judgement:
    """Counted errors of one candidate report: `significant[i]` and `insignificant[i]` are of type `ERROR_TYPES[i]`."""

    significant: tuple[int, int, int, int, int, int]
    insignificant: tuple[int, int, int, int, int, int]

    @property
    def errors(self) -> int:
        """All errors: the sum over all twelve counts, the paper's "# CheXprompt errors" (Methods, step 2)."""
        return sum(self.significant) + sum(self.insignificant)

    @property
    def significant_errors(self) -> int:
        """Clinically significant errors only."""
        return sum(self.significant)


@dataclass(frozen=True)
class JudgeResult:
    """A judgement, or the cause why there is none (one of the constants in `calls.py`); exactly one of them is None."""

    judgement: Judgement | None
    failure: str | None
