"""Keys and passwords out of what is written or printed. They belong into the environment; this is for those put elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence

MASK = "***"
# A setting is a secret by the end of its name; tokens of a vocabulary, and numbers of tokens, are not.
_SECRET = r"(?:token|secret|passwd|password|passphrase|credentials?|authorization|auth|key)"
_VOCABULARY = r"(?:pad|eos|bos|unk|sep|cls|mask|image|video|image_pad|video_pad|stop|end)"
_NAME = rf"(?!{_VOCABULARY}_token\b)(?:[A-Za-z0-9]+[_-])*(?:api|access|private)?{_SECRET}"
_SECRET_NAME = re.compile(_NAME, re.IGNORECASE)
_ASSIGNED = re.compile(
    rf"""(?<![\w-])(?P<name>["']?{_NAME}["']?\s*[:=]\s*)(?P<value>"[^"\n]*"|'[^'\n]*'|(?:Bearer\s+|Basic\s+)?[^\s"',}}\]&]+)""",
    re.IGNORECASE,
)
_VARIABLE = re.compile(r"""(?P<name>api_key_env["']?\s*[:=]\s*["']?)(?P<value>[^\s"',}]+)""", re.IGNORECASE)
_SHAPES = re.compile(
    r"\b(?:hf_|sk-|sk_|ghp_|gho_|github_pat_|glpat-|xox[abp]-|AKIA|AIza)[A-Za-z0-9_\-]{4,}|\b(?:Bearer|Basic)\s+[A-Za-z0-9_\-.=+/]{8,}"
)
_USER = re.compile(r"(?<=://)[^/@\s]+@")
_QUERY = re.compile(r"(?<=[^\s?])(?<!\s)\?[\w.~%+-]+=[^\s\"'#]*")


def is_variable_name(text: str) -> bool:
    """Whether a text can be the name of an environment variable that holds a key, and is hardly the key itself."""
    return (
        len(text) <= 64
        and re.fullmatch(r"[A-Z][A-Z0-9_]*|[A-Za-z]+(_[A-Za-z0-9]+)+", text) is not None
        and not _SHAPES.match(text)
    )


def is_secret_name(name: str) -> bool:
    """Whether a setting of this name holds a secret: `hub_token`, `api_key`, `Authorization`; not `max_tokens`."""
    return _SECRET_NAME.fullmatch(name.strip()) is not None


def mask(text: str) -> str:
    """`text` with the values of secrets, what has the shape of one, and users and queries of addresses replaced."""
    text = _USER.sub("", text)
    text = _QUERY.sub(f"?{MASK}", text)
    text = _VARIABLE.sub(lambda found: found[0] if is_variable_name(found["value"]) else f"{found['name']}{MASK}", text)
    text = _ASSIGNED.sub(lambda found: f"{found['name']}{MASK}", text)
    return _SHAPES.sub(MASK, text)


def mask_words(words: Sequence[str]) -> list[str]:
    """`mask` of a command line: also what follows a flag that names a secret, and a key in place of a variable's name."""
    masked: list[str] = []
    flag = ""
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("--") and equals:
            masked.append(f"{name}={_mask_value(name[2:], value)}")
            flag = ""
        elif word.startswith("--"):
            masked.append(word)
            flag = word[2:]
        else:
            masked.append(_mask_value(flag, word))
            flag = ""
    return masked


def _mask_value(name: str, value: str) -> str:
    name = name.replace("-", "_")
    if is_secret_name(name) or (name.endswith("api_key_env") and not is_variable_name(value)):
        return MASK
    return mask(value)
