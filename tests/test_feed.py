"""The feed of events: in order, bounded, and heard by who waits."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from tiny import FACTS, QUICK

from mintbook.engine.generation import Generation
from mintbook.errors import CapacityError
from mintbook.feed import KEPT, EventFeed
from mintbook.session import Session


def test_the_oldest_are_forgotten_and_the_gap_shows() -> None:
    feed = EventFeed()
    for i in range(KEPT + 5):
        feed.say("loaded", slot=i)
    kept = feed.since(0)
    assert [kept[0].seq, kept[-1].seq, len(kept)] == [6, KEPT + 5, KEPT]
    assert [event.data["slot"] for event in feed.since(KEPT + 3)] == [KEPT + 3, KEPT + 4]


def test_who_waits_hears_the_next_event_and_who_waits_in_vain_hears_nothing() -> None:
    feed = EventFeed()
    heard: list[str] = []
    watcher = threading.Thread(target=lambda: heard.extend(event.kind for event in feed.since(0, wait_s=30)))
    watcher.start()
    feed.say("evicted", slot=1)
    watcher.join(30)
    assert heard == ["evicted"]
    assert feed.since(1, wait_s=0.01) == []


def test_a_fleet_tells_what_becomes_of_its_adapters(open_session: Callable[..., Session]) -> None:
    session = open_session(slot_rows=16)
    for seed, name in enumerate(("alice", "bob")):
        session.adapter(name, rank=10).train(FACTS, **QUICK, seed=seed)
    session.fleet.generate([("alice", "hi")], max_tokens=1)
    told = [(event.kind, event.data.get("revision")) for event in session.fleet.events()]
    assert told == [
        ("adopted", "alice@1"),
        ("evicted", "alice@1"),
        ("adopted", "bob@1"),
        ("loading", "alice@1"),
        ("evicted", "bob@1"),
        ("loaded", "alice@1"),
    ]
    seen = len(told)
    session.fleet["bob"].prewarm()
    assert [event.kind for event in session.fleet.events(after=seen)] == ["loading", "evicted", "loaded", "ready"]


def test_a_refusal_is_told(open_session: Callable[..., Session]) -> None:
    session = open_session(queue_limit=1, max_sequences=1)
    alice = session.adapter("alice", rank=4)
    alice.train(FACTS, **QUICK)
    running: list[Generation] = []

    def flood() -> None:
        while True:
            running.append(alice.stream("hi", max_tokens=200))

    with pytest.raises(CapacityError):
        flood()
    assert len(running) <= 3
    for generation in running:
        generation.cancel()
    assert session.fleet.events()[-1].kind == "refused"
