"""The floors of the house (CONTRIBUTING.md): a package imports from those below it, and from no other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
# From the ground up; what stands on one floor does not import each other.
FLOORS = (
    ("foundation",),
    ("rewards",),
    ("data_prep",),
    ("model",),
    ("settings",),
    ("training", "evaluation"),
    ("recipes",),
    ("launch",),
)
FLOOR = {package: number for number, packages in enumerate(FLOORS) for package in packages}


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module or ""


def test_imports_point_down_only() -> None:
    wrong = [
        f"{path.relative_to(REPOSITORY)} imports {module}"
        for package, floor in FLOOR.items()
        for path in sorted((REPOSITORY / package).rglob("*.py"))
        for module in imported(path)
        if (other := module.partition(".")[0]) in {*FLOOR, "tests", "benchmarks"}
        and other != package
        and FLOOR.get(other, len(FLOORS)) >= floor
    ]
    assert wrong == []


def test_no_files_import_each_other_in_a_circle() -> None:
    modules = {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
        for package in FLOOR
        for path in (REPOSITORY / package).rglob("*.py")
    }
    uses = {name: used_at_start(path) & set(modules) - {name} for name, path in modules.items()}
    while free := {name for name, others in uses.items() if not others}:  # what needs none of the rest
        uses = {name: others - free for name, others in uses.items() if name not in free}
    assert uses == {}


def used_at_start(path: Path) -> set[str]:
    """The modules that a file imports when it is loaded."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_every_package_has_its_floor() -> None:
    packages = {path.parent.name for path in REPOSITORY.glob("*/__init__.py")}
    assert packages - {"benchmarks", "tests"} == set(FLOOR)
