"""The front door: three lists that agree, opened without lighting the furnace, and no option swallowed."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import FACTS, QUICK

import mintbook
from mintbook.adapter import Adapter
from mintbook.errors import ConfigError
from mintbook.fleet import Fleet
from mintbook.session import Session

HEAVY = {"torch", "transformers", "polars", "plotly", "numpy"}
IMPORT_LIMIT_S = 0.5
METHODS = [
    (noun, name)
    for noun in (Session, Adapter, Fleet)
    for name, member in inspect.getmembers(noun, inspect.isfunction)
    if not name.startswith("_")
]
ARGUMENTS: dict[str, Any] = {  # by the name of a required parameter
    "name": "new",
    "source": FACTS,
    "examples": FACTS,
    "prompt": "What is 2?",
    "asks": [(None, "What is 2?")],
    "whom": ["alice"],
    "folder": Path("nowhere"),
}


def imported_for_type_checkers() -> dict[str, str]:
    tree = ast.parse(Path(mintbook.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_three_lists_agree() -> None:
    homes = {name: f"mintbook.{home}" for name, home in mintbook._HOME.items()}
    assert imported_for_type_checkers() == homes
    assert mintbook.__all__ == sorted([*homes, "__version__"]) == dir(mintbook)
    for name, home in homes.items():
        thing = getattr(mintbook, name)
        assert (thing.__name__, thing.__module__) == (name, home)


def test_the_version_is_that_of_the_project() -> None:
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{mintbook.__version__}"' in project


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'Sesion'"):
        mintbook.Sesion  # noqa: B018


def test_the_front_door_opens_fast_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, time; began = time.perf_counter(); import mintbook; took = time.perf_counter() - began; "
        f"print(took, *sorted({HEAVY!r} & set(sys.modules)))"
    )
    answers = [python(code).split() for _ in range(3)]
    assert [loaded for _, *loaded in answers] == [[], [], []]
    assert min(float(took) for took, *_ in answers) < IMPORT_LIMIT_S


@pytest.mark.parametrize("module", ["mintbook.store.catalog", "mintbook.display", "mintbook.cli"])
def test_the_store_the_displays_and_the_command_line_need_no_torch(module: str) -> None:
    assert python(f"import sys, {module}; print('torch' in sys.modules)").strip() == "False"


@pytest.mark.parametrize(("noun", "method"), METHODS)
def test_a_signature_takes_no_more_than_it_documents(noun: type, method: str) -> None:
    function = getattr(noun, method)
    for parameter in inspect.signature(function).parameters.values():
        assert parameter.kind is not parameter.VAR_POSITIONAL
        if parameter.kind is parameter.VAR_KEYWORD:
            assert parameter.name == "options"
            assert "``options``" in (function.__doc__ or "")
        if isinstance(parameter.default, bool):
            assert parameter.kind is parameter.KEYWORD_ONLY, f"{parameter.name} can be given as a bare True"


def test_every_method_refuses_an_unknown_option_and_changes_nothing(
    open_session: Callable[..., Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    session = open_session()
    alice = session.adapter("alice", rank=4)
    alice.train(FACTS, **{**QUICK, "steps": 1})
    nouns: dict[type, object] = {Session: session, Adapter: alice, Fleet: session.fleet}
    before = (session.store.runs(), alice.revisions, len(session.fleet))
    for noun, method in METHODS:
        call = getattr(nouns[noun], method)
        parameters = inspect.signature(call).parameters.values()
        given = {p.name: ARGUMENTS[p.name] for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
        with pytest.raises((ConfigError, TypeError), match="not_an_option"):
            call(**given, not_an_option=1)
    assert (session.store.runs(), alice.revisions, len(session.fleet)) == before
    assert len(METHODS) > 15


def test_a_session_refuses_an_unknown_option() -> None:
    with pytest.raises(ConfigError, match="not_an_option"):
        Session(not_an_option=1)
