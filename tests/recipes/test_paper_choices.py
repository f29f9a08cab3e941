"""recipes/unirg_cxr/README.md lists every choice where the paper is silent: exactly the keys that the YAML files mark."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = REPOSITORY / "recipes" / "unirg_cxr"


def marked() -> dict[str, set[str]]:
    """Key → its values, of every line marked "our choice" or "our reading", alone or by its block's heading."""
    found: dict[str, set[str]] = {}
    for path in RECIPE.glob("*.yaml"):
        whole_block = False
        for line in path.read_text().splitlines():
            if not line.strip():
                whole_block = False
            elif line.startswith("#"):
                whole_block = "our choice, all" in line
            else:
                key, value, comment = re.fullmatch(r"(\w+):\s*(.*?)(?:\s+#\s*(.*))?", line).groups()
                whole_block = whole_block or "our choice, as all below" in (comment or "")
                if whole_block or re.search("our choice|our reading", comment or ""):
                    found.setdefault(key, set()).add(value)
    return found


def listed() -> dict[str, set[str]]:
    """Key → values, of the README's table of choices."""
    text = (RECIPE / "README.md").read_text().partition("## What the paper leaves open")[2].partition("\n## ")[0]
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            for key, value in re.findall(r"`(\w+): ([^`]*)`", line.split(" | ")[0]):
                found.setdefault(key, set()).add(value)
    return found


def test_the_readme_lists_every_choice_and_no_other() -> None:
    assert sorted(listed()) == sorted(marked())


def test_the_readme_gives_the_values_that_the_files_have() -> None:
    files = marked()
    assert {key: values for key, values in listed().items() if not values <= files[key]} == {}


def test_every_file_and_variable_that_the_readme_names_is_there() -> None:
    text = (RECIPE / "README.md").read_text()
    for name in re.findall(r"\]\(([^)#]+)\)", text):
        assert (RECIPE / name).exists(), name
    for name in re.findall(r"(?<![A-Z_])NAME=(\w+)", text):
        assert list((REPOSITORY / "recipes" / "ablations").glob(f"{name}*.yaml")), name
