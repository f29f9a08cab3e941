"""Sex, age and race as sources write them, in the study table's terms: whole words that are known. A word that is not known is
null, never a guess from its first letter or a part of it; sources whose words are their own count and list them."""

from __future__ import annotations

import re
import unicodedata

import pandas as pd

RACES = ("White", "Black", "Asian", "Hispanic", "Other")

_SEX_WORDS = {
    "F": "f female females woman weiblich frau femenino femenina mujer feminino feminina mulher féminin feminin femme "
    "femminile donna vrouw vrouwelijk kvinna kvinde",
    "M": "m male males man männlich mann masculino masculina hombre varón homem masculin homme maschile uomo mannelijk",
}
# Words that say that nothing is known: null, and not listed as words that are not known.
NOT_KNOWN = re.compile(
    r"\b(UNKNOWN|UNK|UNABLE|DECLINED?|REFUSED?|MISSING|PREFER NOT|FAILED TO|NOT (SPECIFIED|GIVEN|AVAILABLE|KNOWN|STATED|"
    r"RECORDED|REPORTED|APPLICABLE)|UNSPECIFIED|UNDISCLOSED|UNREPORTED|DESCONOCIDO|UNBEKANNT|INCONNU)\b"
    r"|^(NAN|N/?A|O|U|X|OTHER|NULL|NONE|\?|-*)$"
)
_NOT_HISPANIC = re.compile(
    r"\bNO[NT][ -]*(OF )?(HISPANIC|LATIN[OAX]|SPANISH)\b( ORIGIN)?([ /]*(OR|AND|/)[ /]*(NON-?)?(HISPANIC|LATIN[OAX]|SPANISH)( ORIGIN)?)*"
)
# Tried in order on the upper-case text, as whole words.
_RACE_PATTERNS = (
    (r"HISPANIC|LATIN[OAX]|HISPAN[OA]|SOUTH AMERICAN", "Hispanic"),
    (r"PACIFIC ISLANDER|NATIVE HAWAIIAN|HAWAIIAN", "Other"),
    (r"BLACK|AFRICAN|AFRO-?AMERICAN|NEGR[OA]|SCHWARZ|NOIRE?", "Black"),
    (r"WHITE|CAUCASIAN|PORTUGUESE|BLANC[OA]?|BLANCHE|WEISS|KAUKASISCH", "White"),
    (r"ASIAN|ASIATIC[OA]|ASIATISCH|ASIATIQUE|CHINESE|JAPANESE|KOREAN|VIETNAMESE|FILIPINO", "Asian"),
)
_OTHER = (
    r"OTHER|MULTIPLE|MULTI-?RACIAL|MIXED|BIRACIAL|TWO OR MORE|MORE THAN ONE|AMERICAN INDIAN|ALASKA NATIVE|NATIVE AMERICAN|"
    r"INDIGENOUS|ABORIGINAL|MIDDLE EASTERN|OTR[OA]|ANDERE|AUTRE"
)


def _plain(text: str) -> str:
    """Without accents, white space made single."""
    decomposed = unicodedata.normalize("NFKD", text.replace("ß", "ss"))
    return " ".join("".join(c for c in decomposed if not unicodedata.combining(c)).split())


_SEXES = {_plain(word): sex for sex, words in _SEX_WORDS.items() for word in words.split()}


def race(text: str | None) -> str | None:
    """One of RACES, or None where unknown. `Non-Hispanic` alone says nothing of race; two races but for Hispanic are Other."""
    if not isinstance(text, str):
        return None
    upper = _NOT_HISPANIC.sub(" ", _plain(text).upper()).strip(" /,-")
    if NOT_KNOWN.search(upper) and upper != "OTHER":
        return None
    upper = re.sub(r"\bNO[NT][ -]+\w+", " ", upper)
    found = list(dict.fromkeys(name for pattern, name in _RACE_PATTERNS if re.search(rf"\b({pattern})\b", upper)))
    if found and found[0] in ("Hispanic", "Other"):
        return found[0]
    if found:
        return found[0] if len(found) == 1 else "Other"
    return "Other" if re.search(rf"\b({_OTHER})\b", upper) else None


def races(column: pd.Series) -> pd.Series:
    """`race` of each value."""
    known = {value: race(value) for value in column.dropna().unique()}
    return column.map(known).astype(object)


def sex(text: str | None) -> str | None:
    """F or M of a whole word that is known, in any case; None else."""
    return _SEXES.get(_plain(text).casefold().strip(" .")) if isinstance(text, str) else None


def sexes(column: pd.Series) -> pd.Series:
    """`sex` of each value. Where H is among them (hombre, homme), M may be mujer: then neither letter is known."""
    values = column.dropna().unique()
    known = {value: sex(value) for value in values}
    if any(str(value).strip().upper() == "H" for value in values):
        known = {value: None if str(value).strip().upper() == "M" else name for value, name in known.items()}
    return column.map(known).astype(object)


def age_of(text: str | None) -> float | None:
    """Years of `45`, `45.0`, `45,5`, `45 years`, `045Y`, `018M`, `002D`, `003W` (DICOM's age string), `50-60` (the middle),
    `90+` and `>=90` (90), `>89` (90); None else, and above 130."""
    if not isinstance(text, str) or not (match := _AGE.fullmatch(_plain(text).casefold())):
        return None
    low = float(match["low"].replace(",", "."))
    years = (low + float(match["high"])) / 2 if match["high"] else low
    if match["more"] == ">":  # whole years: more than 89 is 90
        years += 1
    years *= _UNITS[(match["unit"] or "y")[0]]
    return round(years, 3) if years <= 130 else None


_UNITS = {"y": 1.0, "a": 1.0, "j": 1.0, "m": 1 / 12, "w": 7 / 365.25, "s": 7 / 365.25, "d": 1 / 365.25, "t": 1 / 365.25}
_AGE = re.compile(
    r"(?P<more>>|>=|≥)?\s*(?P<low>\d{1,3}(?:[.,]\d+)?)\s*(?:-\s*(?P<high>\d{1,3}))?\s*"
    r"(?P<unit>y|yr|yrs|yo|y\.?/?o\.?|years?|years? old|a|anos?|ans?|annees?|anni|jahre?|jaar|"
    r"m|mo|mos|months?|mes|meses|mois|monate?|w|wk|wks|weeks?|wochen?|semanas?|semaines?|d|days?|dias?|tage?)?"
    r"\s*\+?\s*\.?"
)


def unknown_words(words: pd.Series, understood: pd.Series) -> dict[str, int]:
    """How often each word occurs of which nothing was understood, though it doesn't say that nothing is known; most frequent
    first, a hundred at most."""
    left = words[words.notna() & understood.isna()].astype(str)
    counted = left[[not NOT_KNOWN.search(_plain(word).upper()) for word in left]].value_counts()
    return {word: int(number) for word, number in sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:100]}
