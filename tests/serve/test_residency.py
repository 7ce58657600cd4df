"""Residency: one load however many ask, leases that hold, the longest unused first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from tiny import FACTS, QUICK

from mintbook.config import LoraConfig
from mintbook.errors import CapacityError, ConfigError, CorruptStore
from mintbook.model.inits import initial_page
from mintbook.serve.residency import Residency
from mintbook.session import Session
from mintbook.store.revisions import Revision


@pytest.fixture
def revisions(session: Session) -> list[Revision]:
    return [session.adapter(n, rank=16, seed=i).train(FACTS, **QUICK).result() for i, n in enumerate("abcdef")]


@pytest.fixture
def residency(session: Session, revisions: list[Revision]) -> Residency:
    for revision in revisions:
        session._runtime.residency.acquire(revision, session.store)
        session._runtime.residency.release(revision)
    for slot in list(session.engine.model.bank._taken):
        session.engine.model.bank.free(slot)
    return Residency(session.engine, session.base.digest)


def test_many_asks_make_one_load(
    session: Session, residency: Residency, revisions: list[Revision], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    began = threading.Event()
    page_of = session.store.page

    def slow(revision: Revision, **options: object) -> object:
        loads.append(revision.reference)
        began.wait(0.2)
        return page_of(revision)

    monkeypatch.setattr(session.store, "page", slow)
    with ThreadPoolExecutor(20) as pool:
        slots = list(pool.map(lambda _: residency.acquire(revisions[0], session.store), range(20)))
    assert loads == ["a@1"]
    assert len(set(slots)) == 1


def test_a_lease_holds_and_the_longest_unused_goes_first(
    session: Session, residency: Residency, revisions: list[Revision]
) -> None:
    held = residency.acquire(revisions[0], session.store)
    for revision in revisions[1:4]:
        residency.acquire(revision, session.store)
        residency.release(revision)
    residency.acquire(revisions[1], session.store)
    residency.release(revisions[1])
    residency.acquire(revisions[4], session.store)
    resident = residency.resident_digests()
    assert [r.reference for r in revisions if r.weights_digest in resident] == ["a@1", "b@1", "d@1", "e@1"]
    assert residency.acquire(revisions[0], session.store) == held


def test_when_all_are_leased_the_next_is_refused_and_nothing_is_lost(
    session: Session, residency: Residency, revisions: list[Revision]
) -> None:
    for revision in revisions[:4]:
        residency.acquire(revision, session.store)
    with pytest.raises(CapacityError, match="slot_rows"):
        residency.acquire(revisions[4], session.store)
    residency.release(revisions[2])
    assert residency.acquire(revisions[4], session.store) >= 0


def test_damaged_bytes_are_never_served(session: Session, residency: Residency, revisions: list[Revision]) -> None:
    (file,) = session.store.path.rglob(f"*{revisions[5].blob}*")
    content = bytearray(file.read_bytes())
    content[-7] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)
    with pytest.raises(CorruptStore, match=r"f@1|blob"):
        residency.acquire(revisions[5], session.store)
    assert revisions[5].weights_digest not in residency.resident_digests()


def test_an_interrupted_load_leaves_nothing_behind(
    session: Session, residency: Residency, revisions: list[Revision], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = session.engine.model.bank.free_rows
    call = session.engine.call

    def interrupted(work: Callable[..., object]) -> object:
        call(work)  # the load runs to its end in the engine's thread; its caller does not see it
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session.store, "page", lambda revision: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            residency.acquire(revisions[0], session.store)
    with monkeypatch.context() as patch:
        patch.setattr(session.engine, "call", interrupted)
        with pytest.raises(KeyboardInterrupt):
            residency.acquire(revisions[1], session.store)
    assert residency.resident_digests() == [revisions[1].weights_digest], "loaded, and without a lease"
    for revision in revisions[2:6]:
        residency.acquire(revision, session.store)
    assert session.engine.model.bank.free_rows == free - 64


def test_a_rank_that_never_fits_says_so(session: Session, residency: Residency) -> None:
    sites = session.engine.model.sites
    page = initial_page(sites, LoraConfig(rank=100, init="peft"))
    with pytest.raises(ConfigError, match="slot_rows=100"):
        residency.place(page)
