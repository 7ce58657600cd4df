"""Budgets and bans: small files, small functions, honest names, errors with a message."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILE_LINES = 400
FUNCTION_LINES = 60
PARAMETERS = 7
DRAWERS = {"utils", "util", "common", "helpers", "helper", "manager", "misc"}
LEFT_OVER = re.compile(r"\b(TODO|FIXME)\b")


def too_big(path: Path, source: str) -> Iterator[tuple[int, str]]:
    lines = source.splitlines()
    if len(lines) > FILE_LINES:
        yield 1, f"{len(lines)} lines; a file has at most {FILE_LINES}"
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > FUNCTION_LINES:
            yield node.lineno, f"{node.name} has {length} lines; a function has at most {FUNCTION_LINES}"
        named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        count = sum(a.arg not in ("self", "cls") for a in [*named, node.args.vararg, node.args.kwarg] if a)
        if count > PARAMETERS and "kernels" not in path.parts:  # a launcher names every pointer and stride
            yield node.lineno, f"{node.name} has {count} parameters; a function has at most {PARAMETERS}"


def badly_named(path: Path, source: str) -> Iterator[tuple[int, str]]:
    for part in path.with_suffix("").parts:
        if part.lower() in DRAWERS:
            yield 1, f"{part} names no job"
    for number, line in enumerate(source.splitlines(), 1):
        if match := LEFT_OVER.search(line):
            yield number, f"{match[0]} belongs in an issue"


def wordless(path: Path, source: str) -> Iterator[tuple[int, str]]:
    if "kernels" in path.parts:
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert):
            yield node.lineno, "assert vanishes under -O; raise an error that says what to do"
        elif isinstance(node, ast.Raise) and node.exc is not None:
            call = node.exc if isinstance(node.exc, ast.Call) else None
            name = ast.unparse(call.func if call else node.exc).split(".")[-1]
            if name == "NotImplementedError":
                yield node.lineno, "raises NotImplementedError; leave the thing out, or make it"
            elif not (
                call.args if call else name.lstrip("_")[:1].islower()
            ):  # a lower-case name holds an error made elsewhere
                yield node.lineno, f"raises {name} without a message"


def faults(path: Path, source: str) -> list[str]:
    found = [*too_big(path, source), *badly_named(path, source), *wordless(path, source)]
    return [f"{path}:{line}: {what}" for line, what in found]


def test_the_code_keeps_its_budgets() -> None:
    files = [
        path for folder in ("mintbook", "kernels/mintbook_kernels") for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    assert len(files) > 50
    found = [f for path in files for f in faults(path.relative_to(ROOT), path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


LONG_FUNCTION = "def act():\n" + "    x = 1\n" * 60
EIGHT = "def act(a, b, c, /, d, *, e, f, g, h): pass"


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("mintbook/store/page.py", "x = 1\n" * 401, "401 lines"),
        ("kernels/mintbook_kernels/tiles.py", "x = 1\n" * 401, "401 lines"),
        ("mintbook/run.py", LONG_FUNCTION, "act has 61 lines"),
        ("mintbook/run.py", EIGHT, "act has 8 parameters"),
        (
            "mintbook/run.py",
            "class Run:\n    async def act(self, a, b, c, d, e, f, *g, **h): pass",
            "act has 8 parameters",
        ),
        ("mintbook/store/utils.py", "", "utils names no job"),
        ("mintbook/helpers/page.py", "", "helpers names no job"),
        ("mintbook/run.py", "x = 1  # TODO: later", "belongs in an issue"),
        ("mintbook/run.py", "assert x", "assert vanishes"),
        ("mintbook/run.py", "raise ValueError", "ValueError without a message"),
        ("mintbook/run.py", "raise errors.ConfigError()", "ConfigError without a message"),
        ("mintbook/run.py", "raise NotImplementedError('later')", "NotImplementedError"),
    ],
)
def test_a_breach_is_reported(path: str, source: str, expected: str) -> None:
    assert [fault for fault in faults(Path(path), source) if expected in fault], faults(Path(path), source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("mintbook/run.py", "def act(self, a, b, c, d, e, f, g): pass"),
        ("mintbook/run.py", "def act():\n" + "    x = 1\n" * 59),
        ("mintbook/run.py", "try:\n    act()\nexcept OSError as error:\n    raise\nraise error\nraise self._error"),
        ("mintbook/run.py", "raise ConfigError(f'{x} is not y') from None"),
        ("kernels/mintbook_kernels/tiles.py", EIGHT + "\nassert x"),
    ],
)
def test_what_is_allowed_is_not_reported(path: str, source: str) -> None:
    assert faults(Path(path), source) == []
