"""Readiness: loaded and seen to have its effect, before anybody asks; an alias flips only then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import polars as pl
import pytest
from tiny import FACTS, QUICK

from mintbook.adapter import Adapter
from mintbook.errors import AdapterError, CapacityError, CorruptStore, RunStopped
from mintbook.serve.counters import prometheus_text
from mintbook.session import Session

BOLD = {**QUICK, "learning_rate": 0.05, "steps": 12}


def evict_all(session: Session) -> None:
    """Fill the slots with runs' own, so that no revision is left in one."""
    from mintbook.config import LoraConfig
    from mintbook.model.inits import initial_page

    residency = session._runtime.residency
    page = initial_page(session.engine.model.sites, LoraConfig(rank=16, init="peft"))
    for slot in [residency.place(page) for _ in range(4)]:
        residency.discard(slot)


def states(session: Session, column: str = "state") -> dict[str, str]:
    return dict(session.fleet.residency.select("revision", column).iter_rows())


@contextmanager
def held_reads(session: Session, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Let reads from the store begin but not end."""
    read, gate = session.store.serving_page, threading.Event()

    def held(*arguments: object) -> object:
        gate.wait(20)
        return read(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(session.store, "serving_page", held)
        yield gate
        gate.set()


def spoil(session: Session, adapter: Adapter, at: str) -> None:
    path = session.store._blobs.path(adapter.revision(at).blob)
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


@pytest.fixture
def alice(session: Session) -> Adapter:
    """Two revisions, both out of the slots."""
    adapter = session.adapter("alice", rank=4)
    adapter.train(FACTS, **QUICK)
    adapter.train(FACTS, **BOLD)
    evict_all(session)
    return adapter


def test_registered_prewarming_ready(session: Session, alice: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    assert states(session, "readiness") == {"alice@1": "registered", "alice@2": "registered"}
    with held_reads(session, monkeypatch) as gate:
        run = alice.prewarm("@2", background=True)
        while states(session)["alice@2"] != "loading":
            time.sleep(0.001)
        assert states(session, "readiness") == {"alice@1": "registered", "alice@2": "prewarming"}
        gate.set()
        assert [revision.reference for revision in run.result()] == ["alice@2"]
    assert states(session, "readiness")["alice@2"] == "ready"
    before = session.fleet.residency_counters
    alice.generate("What is 3?", max_tokens=4)
    after = session.fleet.residency_counters
    assert (after.loads, after.slot_hits) == (before.loads, before.slot_hits + 1), (
        "who asks what is ready loads nothing"
    )
    assert after.leased == 0
    evict_all(session)
    assert states(session, "readiness")["alice@2"] == "registered"


def test_a_trained_revision_is_ready_at_once(session: Session) -> None:
    session.adapter("alice", rank=4).train(FACTS, **QUICK)
    assert (states(session), states(session, "readiness")) == ({"alice@1": "hot"}, {"alice@1": "ready"})


def test_an_alias_flips_only_when_the_new_revision_is_ready(
    session: Session, alice: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice.alias("prod", "@1")
    old = alice.generate("What is 3?", at="@prod", max_tokens=4)
    with held_reads(session, monkeypatch) as gate:
        flip = threading.Thread(target=lambda: alice.alias("prod", "@2", when_ready=True))
        flip.start()
        for _ in range(5):
            assert alice.generate("What is 3?", at="@prod", max_tokens=4) == old
        assert states(session, "readiness")["alice@2"] == "prewarming"
        gate.set()
        flip.join()
    assert alice.generate("What is 3?", at="@prod", max_tokens=4).revision == "alice@2"
    assert states(session, "readiness")["alice@2"] == "ready"


def test_a_broken_revision_leaves_the_alias_where_it_was(session: Session, alice: Adapter) -> None:
    alice.alias("prod", "@1")
    old = alice.generate("What is 3?", at="@prod", max_tokens=4)
    spoil(session, alice, "@2")
    with pytest.raises(CorruptStore, match="checksum") as caught:
        alice.alias("prod", "@2", when_ready=True)
    assert caught.value.__notes__ == ["alice@prod still means alice@1: alice@2 did not become ready."]
    with pytest.raises(CorruptStore) as caught:
        alice.alias("next", "@2", when_ready=True)
    assert "alice@next means nothing" in caught.value.__notes__[0]
    assert session.store.aliases("alice") == {"prod": 1}
    assert alice.generate("What is 3?", at="@prod", max_tokens=4) == old
    spoil(session, alice, "@2")
    assert alice.alias("prod", "@2", when_ready=True).number == 2


def test_a_revision_that_answers_as_the_base_never_becomes_ready(session: Session, alice: Adapter) -> None:
    alice.alias("prod", "@1")
    bank = session.engine.model.bank
    write = bank.write
    bank.write = lambda slot, page: write(slot, page.like(page.tensor * 0))  # type: ignore[method-assign]
    with pytest.raises(AdapterError, match="moves the base's logits by 0 on the probe"):
        alice.alias("prod", "@2", when_ready=True)
    assert states(session, "readiness")["alice@2"] == "registered"
    assert session.store.aliases("alice") == {"prod": 1}
    bank.write = write  # type: ignore[method-assign]
    evict_all(session)
    alice.alias("prod", "@2", when_ready=True)


def test_a_fleet_is_prewarmed_together_and_one_broken_file_harms_nobody_else(session: Session) -> None:
    for name in "abcd":
        session.adapter(name, rank=4, seed=ord(name)).train(FACTS, **QUICK)
    evict_all(session)
    spoil(session, session.fleet["c"], "")
    with pytest.raises(AdapterError, match=r"1 of 4 revisions are not ready.*c@1") as caught:
        session.fleet.prewarm(list("abcd"))
    assert isinstance(caught.value.__cause__, CorruptStore)
    assert states(session, "readiness") == {"a@1": "ready", "b@1": "ready", "c@1": "registered", "d@1": "ready"}
    run = session.fleet.prewarm(["a", session.fleet["b"], "d@1", "d"])
    assert [revision.reference for revision in run.result()] == ["a@1", "b@1", "d@1"]
    assert session.store.run(run.id).result == {"ready": ["a@1", "b@1", "d@1"]}


def test_more_than_fits_is_refused_and_a_prewarm_can_be_stopped(
    open_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session()
    for name in "abcde":
        session.adapter(name, rank=16, seed=ord(name)).train(FACTS, **QUICK)
    with pytest.raises(CapacityError, match="80 rank-rows together, and there are 64"):
        session.fleet.prewarm(list("abcde"))
    evict_all(session)
    with held_reads(session, monkeypatch) as gate:
        run = session.fleet.prewarm(list("abcd"), background=True)
        run.stop()
        gate.set()
        with pytest.raises(RunStopped, match="was stopped"):
            run.result()
    assert session.fleet.residency_counters.leased == 0


def test_what_is_pinned_stays_and_more_than_fits_is_refused(session: Session) -> None:
    for name in "abcdef":
        session.adapter(name, rank=16, seed=ord(name)).train(FACTS, **QUICK)
    for name in "abc":
        session.fleet[name].pin()
    for name in "defdef":
        session.fleet[name].generate("What is 3?", max_tokens=2)
    assert {name: state for name, state in states(session).items() if name < "d"} == dict.fromkeys(
        ("a@1", "b@1", "c@1"), "hot"
    )
    session.fleet["d"].pin()
    session.fleet["d"].pin()
    with pytest.raises(CapacityError, match="unpin"):
        session.fleet["e"].pin()
    with pytest.raises(CapacityError, match="unpin"):
        session.fleet["e"].generate("What is 3?", max_tokens=2)
    assert session.fleet["a"].generate("What is 3?", max_tokens=2).revision == "a@1"
    session.fleet["d"].unpin()
    session.fleet["d"].unpin()
    session.fleet["e"].generate("What is 3?", max_tokens=2)
    assert session.fleet.residency.filter(pl.col("pinned") == "slot")["revision"].sort().to_list() == [
        "a@1",
        "b@1",
        "c@1",
    ]


def test_memory_pins_are_bounded(open_session: Callable[..., Session]) -> None:
    session = open_session(host_cache_bytes=250_000)
    for name in "abcdef":
        session.adapter(name, rank=16, seed=ord(name)).train(FACTS, **QUICK)
    size = session.store.page(session.fleet["a"].revision()).tensor.nbytes
    fits = 250_000 // size
    assert 1 <= fits < 6
    for name in "abcdef"[:fits]:
        session.fleet[name].pin(in_memory=True)
    with pytest.raises(CapacityError, match="host_cache_bytes"):
        session.fleet["f"].pin(in_memory=True)
    for name in "abcdef" * 2:
        session.fleet[name].generate("What is 3?", max_tokens=2)
    assert session.fleet.residency_counters.host_bytes == fits * size
    assert set(session.fleet.residency.filter(pl.col("pinned") == "memory")["revision"]) == {
        f"{name}@1" for name in "abcdef"[:fits]
    }


def test_a_waiting_request_never_holds_up_the_others(
    session: Session, alice: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held_reads(session, monkeypatch) as gate:
        cold = [alice.stream("What is 3?", at=at, max_tokens=4) for at in ("@1", "@2", "@1")]
        assert session.fleet.generate([(None, "What is 3?")], max_tokens=4)[0].revision == "base"
        assert not any(answer.done for answer in cold)
        cold[2].cancel()
        assert cold[2].result().stop_reason == "cancelled"
        gate.set()
        assert [answer.result().revision for answer in cold] == ["alice@1", "alice@2", "alice@1"]
    assert session.fleet.residency_counters.leased == 0


def test_a_failed_load_fails_those_who_wait_and_the_next_ask_tries_again(session: Session, alice: Adapter) -> None:
    spoil(session, alice, "@2")
    streams = [alice.stream("What is 3?", max_tokens=4) for _ in range(3)]
    other = alice.stream("What is 3?", at="@1", max_tokens=4)
    for stream in streams:
        with pytest.raises(CorruptStore, match="alice@2"):
            stream.result()
    assert other.result().revision == "alice@1"
    spoil(session, alice, "@2")
    assert alice.generate("What is 3?", max_tokens=4).revision == "alice@2"
    assert session.fleet.residency_counters.leased == 0


def test_residency_is_visible(session: Session, alice: Adapter) -> None:
    alice.generate("What is 3?", max_tokens=2)
    frame = session.fleet.residency
    row = frame.row(by_predicate=pl.col("revision") == "alice@2", named=True)
    assert (row["state"], row["rank_rows"], row["leases"], row["loads"]) == ("hot", 4, 0, 1)
    assert row["digest"] == alice.revision().weights_digest
    assert row["bytes"] == session.store.page(alice.revision()).tensor.nbytes
    assert row["fetch_s"] > 0
    assert row["activate_s"] > 0
    assert frame["revision"].to_list() == ["alice@1", "alice@2"]
    counters = session.fleet.residency_counters
    text = prometheus_text(counters)
    assert f"mintbook_adapter_loads_total {counters.loads}\n" in text
    assert 'mintbook_adapter_hits_total{tier="slot"} ' in text
    assert all(line.startswith(("# HELP mintbook_", "# TYPE mintbook_", "mintbook_")) for line in text.splitlines())
    assert "1 done, 0 failed" in session.fleet.card().text()
