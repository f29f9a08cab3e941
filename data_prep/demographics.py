"""Sex, age and race as sources write them, in the study table's terms."""

from __future__ import annotations

import re

import pandas as pd

RACES = ("White", "Black", "Asian", "Hispanic", "Other")

# Tried in order on the upper-case text. What is declined or not known is null, not Other.
_RACE_PATTERNS = (
    (r"UNKNOWN|UNABLE|DECLINE|REFUSED|NOT (SPECIFIED|GIVEN|AVAILABLE)|^NAN$|^N/?A$|^$", None),
    (r"HISPANIC|LATINO|LATINA|SOUTH AMERICAN", "Hispanic"),
    (r"BLACK|AFRICAN", "Black"),
    (r"WHITE|CAUCASIAN|PORTUGUESE", "White"),
    (r"PACIFIC ISLANDER|NATIVE HAWAIIAN", "Other"),
    (r"ASIAN", "Asian"),
)


def race(text: str | None) -> str | None:
    """One of RACES, or None where unknown. `Non-Hispanic` alone says nothing of race."""
    if not isinstance(text, str):
        return None
    upper = re.sub(r"NON-?\s?HISPANIC(/NON-LATINO)?", "", text.strip().upper()).strip(" /,-")
    for pattern, name in _RACE_PATTERNS:
        if re.search(pattern, upper):
            return name
    return "Other"


def races(column: pd.Series) -> pd.Series:
    """`race` of each value."""
    known = {value: race(value) for value in column.dropna().unique()}
    return column.map(known).astype(object)


def sexes(column: pd.Series) -> pd.Series:
    """F or M of each value's first letter; null for anything else."""
    first = column.astype("string").str.strip().str.upper().str[:1]
    return first.where(first.isin(["F", "M"])).astype(object)


def age_of(text: str | None) -> float | None:
    """Years of `45`, `45.0`, `045Y`, `018M`, `002D`, `003W` (DICOM's age string) or `50-60` (the middle); None else."""
    if not isinstance(text, str) or not (
        match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)(?:-(\d+))?\s*([YMWD]?)\s*", text.upper())
    ):
        return None
    years = (float(match[1]) + float(match[2])) / 2 if match[2] else float(match[1])
    years *= {"": 1.0, "Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}[match[3]]
    return round(years, 3) if years <= 130 else None
