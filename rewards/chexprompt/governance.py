"""Which reports may be sent to which host."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

# Sources whose reports anybody may read. All others, a user's own included, count as credentialed until listed here.
# IU X-ray (Open-i) is public; phantoms are drawn and written by this project.
OPEN_SOURCES = ("iu_xray",)
OPEN_PREFIXES = ("phantom_",)


class JudgeError(ValueError):
    """A judge cannot be used as set up. The message is one line: what, where, and how to mend it."""


def host_of(base_url: str) -> str:
    """Host name or address of a judge's URL, lower case.

    Raises:
        JudgeError: not an http or https URL with a host.
    """
    try:
        parts = urlsplit(base_url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, None
    if not host or parts.scheme not in ("http", "https"):
        raise JudgeError("judge_base_url must look like http://127.0.0.1:8000/v1 (or be the word offline)")
    if parts.username or parts.password:
        raise JudgeError(f"judge_base_url for {host} holds a user name or password; put the key into judge_api_key_env")
    return host.lower()


def is_loopback(host: str) -> bool:
    """True only for `localhost` and loopback addresses; a name is never looked up, since its answer may change."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_open(source: str | None) -> bool:
    """True for sources whose reports are public; an unnamed source is not."""
    return source is not None and (source in OPEN_SOURCES or source.startswith(OPEN_PREFIXES))


def check_sources(
    sources: Iterable[str | None], base_url: str, trusted_hosts: Sequence[str] = (), allow_remote: bool = False
) -> None:
    """Return if reports of all `sources` may go to `base_url`.

    They may where the source is open, the host is loopback, the host is one of `trusted_hosts` (host names without port,
    compared whole), or `allow_remote` is set.

    Raises:
        JudgeError: they may not; the message names the sources, the host, and the ways out.
    """
    host = host_of(base_url)
    if allow_remote or is_loopback(host) or host in {trusted.lower() for trusted in trusted_hosts}:
        return
    closed = sorted({source or "an unnamed source" for source in sources if not is_open(source)})
    if closed:
        raise JudgeError(
            f"reports of {', '.join(closed)} are not sent to {host}: they may be credentialed patient text. Use a judge on "
            f"this machine (judge_base_url: http://127.0.0.1:8000/v1), add the host to judge_trusted_hosts where your data "
            f"use agreement allows it, or set judge_allow_remote: true"
        )
