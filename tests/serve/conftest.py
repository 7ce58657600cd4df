"""Places to load adapters in, over one tiny base and one store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from loading_place import Place

from mintbook.model.base import Base, load_base
from mintbook.store.store import Store


@pytest.fixture(scope="session")
def tiny_base(tiny_base_folder: Path) -> Base:
    return load_base(tiny_base_folder, dtype="float32", device="cpu", progress=lambda *_: None)


@pytest.fixture
def open_place(device: str, tiny_base: Base, tmp_path: Path) -> Iterator[Callable[..., Place]]:
    """Make places over one base and one store."""
    opened: list[Place] = []
    with Store.open(tmp_path / "store") as store:

        def make(**options: int) -> Place:
            opened.append(Place(tiny_base, store, device, **options))
            return opened[-1]

        yield make
        for place in opened:
            place.engine.close()


@pytest.fixture
def place(open_place: Callable[..., Place]) -> Place:
    return open_place()
