"""What the project depends on: what it imports, no more and no less, at versions that are written down."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
ELSEWHERE = {ROOT / "mintbook" / "bench" / "vllm_worker.py"}  # a script for another environment than ours
COMES_WITH = {"ipython": "ipykernel"}
# What the Linux build of torch that a package index serves demands; a CPU build does not say it.
TRITON_OF_TORCH = {"2.13.0": "3.7.1"}
PIN = re.compile(r"([A-Za-z0-9_.-]+)==([0-9][A-Za-z0-9.]*)")


def imported_by(source: str) -> set[str]:
    """Return the distributions that a file imports, wherever in the file it does."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    foreign = found - sys.stdlib_module_names - {"__future__", "mintbook", "mintbook_kernels"}
    names = {canonicalize_name(name.replace("_", "-")) for name in foreign}
    return {COMES_WITH.get(name, name) for name in names}


def declared(*groups: list[str]) -> dict[str, Requirement]:
    wanted = [Requirement(text) for group in groups for text in group]
    return {canonicalize_name(one.name): one for one in wanted if one.name != "mintbook"}


def needed_by(names: set[str]) -> set[str]:
    """Return ``names`` and all that they require here; what torch brings along depends on its build."""
    seen, todo = set[str](), list(names)
    while todo:
        if (name := todo.pop()) in seen:
            continue
        try:
            wanted = [] if name == "torch" else [Requirement(text) for text in requires(name) or []]
        except PackageNotFoundError:
            continue
        seen.add(name)
        todo += [
            canonicalize_name(one.name) for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})
        ]
    return seen


def pins_of(text: str) -> dict[str, str]:
    pins = {}
    for line in text.splitlines():
        match = PIN.fullmatch(line)
        assert match, f"{line!r} is not of the form name==version"
        pins[canonicalize_name(match[1])] = match[2]
    return pins


PINS = pins_of((ROOT / "constraints.txt").read_text(encoding="utf-8"))


def test_what_is_imported_is_declared_and_what_is_required_is_imported() -> None:
    files = [path for folder in ("mintbook", "kernels/mintbook_kernels") for path in (ROOT / folder).rglob("*.py")]
    imported = set[str]().union(*(imported_by(f.read_text(encoding="utf-8")) for f in files if f not in ELSEWHERE))
    always = declared(PROJECT["dependencies"])
    optional = declared(*(EXTRAS[name] for name in EXTRAS if name != "dev"))
    assert imported - set(always) - set(optional) == set(), "imported, but not in pyproject.toml"
    assert set(always) - imported == set(), "required by pyproject.toml, but not imported"


def test_every_import_in_a_file_counts() -> None:
    source = (
        "import os, torch.nn\nif x:\n    from huggingface_hub import y\n"
        "def late():\n    import IPython\nimport mintbook.run"
    )
    assert imported_by(source) == {"torch", "huggingface-hub", "ipykernel"}


def test_every_requirement_admits_its_written_version() -> None:
    wanted = declared(PROJECT["dependencies"], *EXTRAS.values())
    assert [name for name in wanted if name not in PINS] == []
    assert [str(one) for name, one in wanted.items() if PINS[name] not in one.specifier] == []


def test_all_that_is_installed_for_the_project_has_a_written_version() -> None:
    assert needed_by(set(declared(PROJECT["dependencies"], *EXTRAS.values()))) - set(PINS) == set()


def test_triton_is_the_one_that_torch_demands() -> None:
    assert PINS["triton"] == TRITON_OF_TORCH[PINS["torch"]]


@pytest.mark.parametrize("line", ["torch==2.13.0+cpu", "torch>=2.13", "x @ file:///x", "-e .", "--index-url x", ""])
def test_only_plain_versions_are_written(line: str) -> None:
    with pytest.raises(AssertionError, match="name==version"):
        pins_of(f"numpy==2.4.6\n{line}\npeft==0.21.2\n")
