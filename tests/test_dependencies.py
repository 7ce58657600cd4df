"""What the project depends on: what it imports, no more and no less, at versions that are written down."""

from __future__ import annotations

import ast
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
COMES_WITH = {"ipython": "ipykernel"}
TORCH_ON_LINUX = "3.7.1"
PIN = r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*"


def imported(root: Path) -> set[str]:
    """Return the distributions that the shipped code imports, wherever in a file it does."""
    found = set()
    for folder in ("mintbook", "kernels/mintbook_kernels"):
        for path in (root / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    found.add(node.module.split(".")[0])
    names = {canonicalize_name(name) for name in found - sys.stdlib_module_names - {"mintbook", "mintbook_kernels"}}
    return {COMES_WITH.get(name, name) for name in names}


def declared(*groups: list[str]) -> dict[str, Requirement]:
    wanted = [Requirement(text) for group in groups for text in group]
    return {canonicalize_name(one.name): one for one in wanted if one.name != "mintbook"}
