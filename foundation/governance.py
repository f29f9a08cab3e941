"""Which reports may be sent to which host."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from foundation.errors import OneLineError

# Sources whose reports anybody may read. All others, a user's own included, count as credentialed until listed here.
# IU X-ray (Open-i) is public; phantoms are drawn and written by this project.
OPEN_SOURCES = ("iu_xray",)
OPEN_PREFIXES = ("phantom_",)


class JudgeError(OneLineError):
    """A judge cannot be used as set up. The message is one line: what, where, and how to mend it."""


def host_of(base_url: str, setting: str = "judge_base_url") -> str:
    """Host name or address of a server's URL, lower case; `setting` is the key that names it.

    Raises:
        JudgeError: not an http or https URL with a host.
    """
    try:
        parts = urlsplit(base_url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, None
    if not host or parts.scheme not in ("http", "https"):
        offline = " (or be the word offline)" if setting == "judge_base_url" else ""
        raise JudgeError(f"{setting} must look like http://127.0.0.1:8000/v1{offline}")
    if parts.username or parts.password:
        raise JudgeError(f"{setting} for {host} holds a user name or password; put the key into judge_api_key_env")
    if parts.query or parts.fragment:
        raise JudgeError(
            f"{setting} for {host} holds a query (?…); put the key into judge_api_key_env, and only the path here"
        )
    return host.lower()


def is_loopback(host: str) -> bool:
    """True only for `localhost` and loopback addresses; a name is never looked up, since its answer may change."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def may_use_proxy(url: str) -> bool:
    """Whether a proxy of the environment may carry what goes to `url`.

    Over https it sees a host's name and nothing else. Over http it reads all, key included, and nobody listed it: http goes
    straight to the host. What stays on this machine never goes through one.
    """
    return urlsplit(url).scheme == "https" and not is_loopback(host_of(url))


def keep_off_proxies(*urls: str) -> None:
    """Set `no_proxy` so that HTTP clients that are not ours (TRL's, urllib) keep to `may_use_proxy` for this machine and `urls`."""
    direct = ["localhost", "127.0.0.1", "::1", *(host_of(url) for url in urls if not may_use_proxy(url))]
    for variable in ("no_proxy", "NO_PROXY"):  # of both spellings the lower one counts, where there is one
        known = [host for host in os.environ.get(variable, "").split(",") if host]
        os.environ[variable] = ",".join(dict.fromkeys([*known, *direct]))


def printable(text: str, longest: int = 200) -> str:
    """Text of a server for a terminal or a log: no control character, no line break, of bounded length."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:longest])
    return shown + ("…" if len(text) > longest else "")


def is_open(source: str | None) -> bool:
    """True for sources whose reports are public; an unnamed source is not."""
    return source is not None and (source in OPEN_SOURCES or source.startswith(OPEN_PREFIXES))


def check_sources(
    sources: Iterable[str | None],
    base_url: str,
    trusted_hosts: Sequence[str] = (),
    allow_remote: bool = False,
    what: str = "reports",
    setting: str = "judge_base_url",
    trusted: str = "judge_trusted_hosts",
) -> None:
    """Return if texts or films of all `sources` may go to `base_url`: the one rule for every server that is sent any.

    They may where the source is open, the host is loopback, the host is one of `trusted_hosts` (host names without port,
    compared whole), or `allow_remote` is set.

    Raises:
        JudgeError: they may not; the message names the sources, the host, and the ways out.
    """
    host = host_of(base_url, setting)
    if allow_remote or is_loopback(host) or host in {name.lower() for name in trusted_hosts}:
        return
    closed = sorted({source or "an unnamed source" for source in sources if not is_open(source)})
    if closed:
        allow = " or set judge_allow_remote: true" if setting == "judge_base_url" else ""
        raise JudgeError(
            f"{what} of {', '.join(closed)} are not sent to {host}: they may be credentialed patient data. Use a server on "
            f"this machine ({setting}: http://127.0.0.1:8000), or add the host to {trusted} where your data use agreement "
            f"allows it{',' if allow else ''}{allow}"
        )


def claimed_source(claim: str | None, named: str | None = None) -> str | None:
    """The source by which a file's report is governed: a file's own claim may close it and never open it.

    Args:
        claim: the data set that the file names for the report.
        named: the one that the user named for the whole file.
    """
    if claim is not None and not is_open(claim):
        return claim
    return f"a file that calls itself {claim}" if named is None and claim is not None else named
