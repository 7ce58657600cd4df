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
import torch

import mintbook.errors
from mintbook.config import LoraConfig
from mintbook.store.manifest import Manifest
from mintbook.store.page import LAYOUT, Page, Site
from mintbook.store.store import Store

BASE = "b" * 64
LORA = LoraConfig(rank=2)
SITES = (Site("layers.0.q_proj", 4, 6), Site("layers.0.up_proj", 3, 5))


def tiny_page(seed: int = 0) -> Page:
    """Return random weights of rank 2."""
    numbers = torch.randn(2, 18, generator=torch.Generator().manual_seed(seed))
    return Page(numbers, SITES, (2, 1), (1.0, 2.0))


def manifest_of(page: Page, **changed: Any) -> Manifest:
    """Return a manifest that tells the truth about ``page``, except where it is ``changed``."""
    truth = {
        "base_digest": BASE,
        "base_name": "tiny",
        "tokenizer_digest": "t" * 64,
        "renderer_digest": "r" * 64,
        "lora": LORA.to_dict(),
        "sites": len(page.sites),
        "parameters": page.parameters,
        "rank": page.rank,
        "targets": tuple(site.name for site in page.sites),
        "alpha": LORA.alpha,
        "alpha_rule": LORA.alpha_rule,
        "init": LORA.init,
        "dtype": "float32",
        "layout_version": LAYOUT,
        "weights_digest": page.weights_digest(BASE),
        "seed": 0,
        "code_version": "0.0",
        "created": "2026-01-01T00:00:00.000000+00:00",
    }
    return Manifest(**{**truth, **changed})


def add_record(store: Store, name: str) -> None:
    """Make a record that `tiny_page` fits."""
    store.create_record(name, base_digest=BASE, base_name="tiny", lora=LORA)


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
