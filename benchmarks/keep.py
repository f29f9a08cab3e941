"""Where a benchmark keeps its last figures: a JSON file beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def keep(name: str, content: Mapping[str, Any]) -> None:
    """Print `content`, and put it into `<name>.json`: parts that were not run keep their last figures."""
    path = HERE / f"{name}.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    text = json.dumps({**before, **content}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    print(json.dumps(content, indent=1))
