"""verify.json and verify.html: every line with what was expected, what was found, and whether that is well."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from foundation.files import write_json, write_text
from launch.verifying.line import Line

_WORDS = {True: "ok", False: "differs", None: "skipped"}
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; vertical-align: top; padding: .35rem .6rem;
border-bottom: 1px solid #ddd; overflow-wrap: anywhere } .ok { color: #1a6b2f } .differs { color: #b00020; font-weight: 600 }
.skipped { color: #666 } dt { float: left; clear: left; width: 11rem; color: #666 } dd { margin-left: 11.5rem }
"""


def counts(lines: Sequence[Line]) -> str:
    """`12 ok, 1 differs, 3 skipped`."""
    number = Counter(_WORDS[line.ok] for line in lines)
    return ", ".join(f"{number[word]} {word}" for word in _WORDS.values())


def write_report(out: Path, lines: Sequence[Line], about: dict[str, Any]) -> None:
    """Write both files into `out`, each atomically.

    Args:
        about: what was verified and on which machine; shown above the table.
    """
    write_json(
        out / "verify.json", {"about": about, "counts": counts(lines), "lines": [asdict(line) for line in lines]}
    )
    write_text(out / "verify.html", _page(lines, about))


def _page(lines: Sequence[Line], about: dict[str, Any]) -> str:
    facts = "".join(
        f"<dt>{html.escape(str(name))}</dt><dd>{html.escape(str(value))}</dd>" for name, value in about.items()
    )
    rows = "".join(
        f"<tr><td>{html.escape(line.check)}</td><td>{html.escape(line.expected)}</td><td>{html.escape(line.found)}</td>"
        f'<td class="{_WORDS[line.ok]}">{_WORDS[line.ok]}</td></tr>\n'
        for line in lines
    )
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Verification</title><style>{_STYLE}</style>\n'
        f"<h1>Verification: {html.escape(counts(lines))}</h1>\n<dl>{facts}</dl>\n"
        f"<table><tr><th>check</th><th>expected</th><th>found</th><th>ok</th></tr>\n{rows}</table></html>\n"
    )
