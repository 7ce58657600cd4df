"""The promises about cold loads, held to the letter: what a burst is given, and one load however many ask."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mintbook.bench.row import Row
from mintbook.bench.setting import Setting
from mintbook.bench.stock import Stock, empty_slots, open_resident
from mintbook.bench.traffic import Client
from mintbook.config import SampleConfig
from mintbook.errors import CapacityError, MintbookError
from mintbook.model.base import Base
from mintbook.resident import Resident

BURST = 4
CROWD = 100
PROMPT = (7, 11, 13, 17)


def bound_rows(setting: Setting, base: Base, stock: Stock) -> list[Row]:
    """Return what became of a burst of 4 with 1 load in flight and 1 in line, and of 100 asks for one adapter.

    Raises `MintbookError` unless those are 2 loaded and 2 refused, and 1 load.
    """
    rows = sum(revision.manifest.rank for revision in stock.revisions[:BURST])
    room = {"slot_rows": max(16, rows), "loads_in_flight": 1, "load_queue": 1}
    with open_resident(setting, base, room) as resident:
        loaded, refused = _burst(resident, stock)
        loads = _crowd(resident, stock)
    burst, crowd = f"1 in flight, 1 in line, burst of {BURST}", f"{CROWD} requests for one adapter"
    _hold(burst, (loaded, refused), (2, 2))
    _hold(crowd, (loads,), (1,))
    return [
        Row(burst, "mintbook", "loaded", loaded, "adapters"),
        Row(burst, "mintbook", "refused", refused, "adapters"),
        Row(crowd, "mintbook", "loads", loads, "loads"),
    ]


def _burst(resident: Resident, stock: Stock) -> tuple[int, int]:
    residency = empty_slots(resident)
    leases, refused = [], 0
    with _held_engine(resident):
        for revision in stock.revisions[:BURST]:
            try:
                leases.append(residency.lease(revision, stock.store))
            except CapacityError:
                refused += 1
    slots = set()
    for lease in leases:
        with lease as slot:
            slots.add(slot)
    return len(slots), refused


def _crowd(resident: Resident, stock: Stock) -> int:
    residency = empty_slots(resident)
    client = Client(resident, stock.store, stock.revisions)
    with _held_engine(resident):
        crowd = [client.submit(0, PROMPT, SampleConfig(max_tokens=1)) for _ in range(CROWD)]
    answers = {generation.result().tokens for generation in crowd}
    _hold("answers of the crowd", (len(answers),), (1,))
    return residency.counters().loads


@contextmanager
def _held_engine(resident: Resident) -> Iterator[None]:
    """Keep the engine busy, so that no load can end, for the length of a ``with`` block."""
    held, release = threading.Event(), threading.Event()

    def hold(_model: object) -> None:
        held.set()
        release.wait()

    thread = threading.Thread(target=resident.engine.call, args=(hold,), daemon=True)
    thread.start()
    held.wait()
    try:
        yield
    finally:
        release.set()
        thread.join()


def _hold(what: str, found: tuple[int, ...], promised: tuple[int, ...]) -> None:
    if found != promised:
        raise MintbookError(
            f"{what}: {found} instead of {promised}. No row was written; this is a fault of mintbook, please report it."
        )
