"""Everything public says what it is, in a first line that is a sentence."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for folder in ("mintbook", "kernels/mintbook_kernels") for path in (ROOT / folder).rglob("*.py"))
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


def speaks(node: ast.Module | ast.ClassDef | FUNCTION) -> bool:
    text = ast.get_docstring(node)
    return bool(text) and str(text).splitlines()[0].endswith((".", ":"))


def public(node: ast.stmt) -> TypeGuard[ast.ClassDef | FUNCTION]:
    if not isinstance(node, ast.ClassDef | FUNCTION) or node.name.startswith("_"):
        return False
    names = {ast.unparse(decorator).split(".")[-1] for decorator in node.decorator_list}
    return not names & {"overload", "setter"}  # the function they belong to speaks for them


def silent(tree: ast.Module) -> Iterator[str]:
    """Yield ``line: name`` for whatever is public and has no docstring, or one whose first line is no sentence."""
    if tree.body and not speaks(tree):
        yield "1: the module"

    def inside(parent: ast.Module | ast.ClassDef, path: str) -> Iterator[str]:
        nested = [n for b in parent.body for n in ([*b.body, *b.orelse] if isinstance(b, ast.If) else [b])]
        for node in nested:
            if public(node):
                if not speaks(node):
                    yield f"{node.lineno}: {path}{node.name}"
                if isinstance(node, ast.ClassDef):
                    yield from inside(node, f"{path}{node.name}.")

    yield from inside(tree, "")


def test_everything_public_has_a_docstring() -> None:
    trees = {path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
    assert len(FILES) > 50
    found = [f"{path}:{what}" for path, tree in trees.items() for what in silent(tree)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1", ["1: the module"]),
        ('"""No full stop"""', ["1: the module"]),
        ('"""Good."""\ndef act(): ...', ["2: act"]),
        ('"""Good."""\ndef act():\n    """Do it"""', ["2: act"]),
        ('"""Good."""\nclass Thing:\n    """Good:"""\n    def act(self): ...', ["4: Thing.act"]),
        ('"""Good."""\nif x:\n    def act(): ...\nelse:\n    class Thing: ...', ["3: act", "5: Thing"]),
        ('"""Good."""\ndef _act(): ...\nclass _Thing:\n    def act(self): ...', []),
        ("", []),
    ],
)
def test_the_guard_sees_what_is_silent(source: str, expected: list[str]) -> None:
    assert list(silent(ast.parse(source))) == expected
