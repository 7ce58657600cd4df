"""A tiny adapter and a store to put it in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_page import BASE, LORA, add_record, manifest_of, tiny_page

import mintbook.errors
from mintbook.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An open store with the empty record ``alice``."""
    with Store.open(tmp_path / "store") as opened:
        add_record(opened, "alice")
        yield opened


@pytest.fixture
def teach(store: Store) -> Callable[..., Any]:
    """Commit the weights of a seed to a record, alice unless told otherwise."""

    def commit(seed: int, record: str = "alice", **rest: Any) -> Any:
        page = tiny_page(seed)
        return store.commit(record, page=page, manifest=manifest_of(page, seed=seed), **rest)

    return commit


def run_script(name: str, *arguments: object) -> list[str]:
    """Run a script beside this file, which forks children of its own; return its lines."""
    here = Path(__file__).parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(mintbook.errors.__file__).parents[1])}
    command = [sys.executable, str(here / name), *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    sys.stderr.write(ran.stderr)
    assert ran.returncode == 0
    return ran.stdout.splitlines()


@pytest.fixture(scope="session")
def script() -> Callable[..., list[str]]:
    """Run a script beside this file."""
    return run_script


@pytest.fixture
def made() -> SimpleNamespace:
    """What tests are made of: ``page(seed)``, ``manifest(page, **changed)``, ``record(store, name)``."""
    return SimpleNamespace(page=tiny_page, manifest=manifest_of, record=add_record, base=BASE, lora=LORA)
