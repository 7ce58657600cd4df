"""Imports only go down the floors; late imports and those for type checkers count like any other."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [  # the ground floor first; rooms of one floor are blind to each other
    ["errors"],
    ["config", "events", "feed", "passing_thread", "display"],
    ["store"],
    ["model"],
    ["engine"],
    ["train", "serve", "diff", "evals"],
    [
        "runtime",
        "run",
        "training_run",
        "comparison",
        "assessment",
        "peft_import",
        "resident",
        "answers",
        "prewarming",
        "adapter",
    ],
    ["fleet"],
    ["session"],
    ["studies", "notebook", "bench"],
    ["cli", "__main__", "__init__"],
]
OPEN_FLOORS = {6, 10}  # their modules see each other, as long as no circle comes of it
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FRONT_DOOR = Path("mintbook/__init__.py")
parsed = cache(ast.parse)


def modules(root: Path) -> dict[str, Path]:
    found = {}
    for folder in (root, root / "kernels"):
        for package in ("mintbook", "mintbook_kernels"):
            for path in sorted((folder / package).rglob("*.py")):
                found[".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def imports(tree: ast.Module, known: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """Yield line and module; ``from package import module`` is an import of both."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module
            for alias in node.names:
                if f"{node.module}.{alias.name}" in known and node.module != "mintbook":
                    yield node.lineno, f"{node.module}.{alias.name}"


def hidden_imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "is a relative import; write it absolute"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield node.lineno, "imports by a text; write an import statement"


def fault_of(room: str, name: str) -> str | None:
    parts = name.split(".")
    if parts[0] != "mintbook":
        return None
    if parts[1:] in ([], ["__init__"]):
        return "imports the package root; import the module that defines the name"
    other = parts[1]
    if other not in FLOOR_OF:
        return f"imports {other}, which has no floor"
    here, there = FLOOR_OF[room], FLOOR_OF[other]
    if there < here or other == room or (there == here and here in OPEN_FLOORS):
        return None
    return f"{room} (floor {here}) imports {other} (floor {there})"


def faults(root: Path) -> list[str]:
    """Return every import under ``root`` that does not go down, as ``file:line: what``."""
    known, found, graph = modules(root), [], dict[str, set[str]]()
    for module, path in known.items():
        where, tree = path.relative_to(root), parsed(path.read_text(encoding="utf-8"))
        edges = list(imports(tree, known))
        graph[module] = {name for _, name in edges if name in known}
        if where != FRONT_DOOR:
            found += [f"{where}:{line}: {what}" for line, what in hidden_imports(tree)]
        if where.parts[0] == "kernels":
            found += [
                f"{where}:{line}: the kernels import {name}; they stand alone"
                for line, name in edges
                if name.split(".")[0] == "mintbook"
            ]
            continue
        room = where.parts[1].removesuffix(".py")
        if room not in FLOOR_OF:
            found.append(f"{where}:1: {room} has no floor")
            continue
        found += [f"{where}:{line}: {what}" for line, name in edges if (what := fault_of(room, name)) is not None]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(f"a circle of imports: {' ← '.join(error.args[1])}")
    return found


def test_imports_only_go_down() -> None:
    assert len(modules(ROOT)) > 50
    found = faults(ROOT)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("file", "line", "expected"),
    [
        (
            "mintbook/store/page.py",
            "from mintbook.engine.engine import Engine",
            "store (floor 2) imports engine (floor 4)",
        ),
        (
            "mintbook/errors.py",
            "def late():\n    import mintbook.session",
            "errors (floor 0) imports session (floor 8)",
        ),
        (
            "mintbook/model/slots.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mintbook.adapter import Adapter",
            "model (floor 3) imports adapter (floor 6)",
        ),
        ("mintbook/config.py", "import mintbook.display.card", "config (floor 1) imports display (floor 1)"),
        ("mintbook/train/loss.py", "import mintbook.serve.residency", "train (floor 5) imports serve (floor 5)"),
        ("mintbook/serve/residency.py", "from mintbook.train import loss", "serve (floor 5) imports train (floor 5)"),
        ("mintbook/fleet.py", "from mintbook import Session", "imports the package root"),
        ("mintbook/fleet.py", "import mintbook as mb", "imports the package root"),
        ("mintbook/cli.py", "import mintbook.__init__", "imports the package root"),
        ("mintbook/diff/report.py", "from . import weights", "relative import"),
        (
            "mintbook/store/store.py",
            "import importlib\nimportlib.import_module('mintbook.session')",
            "imports by a text",
        ),
        ("mintbook/runtime.py", "from mintbook.adapter import Adapter", "a circle of imports"),
        ("mintbook/store/page.py", "import mintbook.store.store", "a circle of imports"),
        ("mintbook/drawer.py", "import json", "drawer has no floor"),
        ("kernels/mintbook_kernels/tiles.py", "from mintbook.errors import ConfigError", "they stand alone"),
        ("kernels/mintbook_kernels/tiles.py", "from .checks import check", "relative import"),
    ],
)
def test_an_injected_fault_is_reported(tmp_path: Path, file: str, line: str, expected: str) -> None:
    for package in ("mintbook", "kernels/mintbook_kernels"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    before = faults(tmp_path)
    path = tmp_path / file
    path.write_text((path.read_text(encoding="utf-8") if path.exists() else "") + f"\n{line}\n", encoding="utf-8")
    new = [fault for fault in faults(tmp_path) if fault not in before]
    assert any(expected in fault and (file in fault or "circle" in fault) for fault in new), new
