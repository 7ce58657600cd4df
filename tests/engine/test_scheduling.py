"""Who comes when: turns between adapters, room that runs out, lines that are full, adapters that are still loading."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest
from asking import adapters, alone, ask

from mintbook.config import EngineConfig
from mintbook.engine.chunks import TILE
from mintbook.engine.engine import Engine
from mintbook.engine.fair_order import GENERATED, PROMPT, FairOrder
from mintbook.errors import CapacityError, CorruptStore, MintbookError
from mintbook.model.batch import PackedBatch
from mintbook.model.packed_model import PackedModel

Open = Callable[..., Engine]
Steps = list[list[tuple[int, int, int]]]


@pytest.fixture
def open_engine(tiny_model: PackedModel, tiny_tokenizer: object) -> Iterator[Open]:
    opened = []

    def open_one(**options: Any) -> Engine:
        opened.append(Engine(tiny_model, tiny_tokenizer, EngineConfig(**{"kv_tokens": 2048, **options})))
        return opened[-1]

    yield open_one
    for engine in opened:
        engine.close()


@pytest.fixture
def steps(tiny_model: PackedModel, monkeypatch: pytest.MonkeyPatch) -> Steps:
    """What every step reads: (slot, start, tokens) of each piece."""
    seen: Steps = []
    real = tiny_model.logits

    def watched(batch: PackedBatch, keep: Any) -> Any:
        seen.append([(piece.slot, piece.start, len(piece.tokens)) for piece in batch.pieces])
        return real(batch, keep)

    monkeypatch.setattr(tiny_model, "logits", watched)
    return seen


class Held:
    """Keeps the engine's loop busy, so that what is submitted meanwhile is seen together."""

    def __init__(self, engine: Engine) -> None:
        self._go = threading.Event()
        inside = threading.Event()
        self._thread = threading.Thread(target=engine.call, args=(lambda model: (inside.set(), self._go.wait(30)),))
        self._thread.start()
        inside.wait(30)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self._go.set()
        self._thread.join(30)


def test_counters_of_served_tokens_give_turns_and_idle_time_saves_none_up() -> None:
    fair = FairOrder()
    fair.join("a")
    fair.charge("a", prompt=10, generated=5)
    fair.join("b")
    assert fair["b"] == fair["a"] == 10 * PROMPT + 5 * GENERATED
    fair.charge("b", generated=1)
    fair.join("c")
    assert fair["c"] == fair["a"]
    fair.leave("b")
    fair.join("b")
    assert fair["b"] == fair["a"] + GENERATED, "who leaves and comes back owes what it was given"
    for tenant in "abc":
        fair.leave(tenant)
    fair.join("d")
    assert fair["d"] == 0


@pytest.mark.parametrize(
    "room",
    [{"max_sequences": 64}, {"max_sequences": 8}, {"kv_tokens": 512}],
    ids=["places", "few places", "few blocks"],
)
def test_a_flood_of_one_adapter_does_not_starve_another(open_engine: Open, steps: Steps, room: dict[str, int]) -> None:
    engine = open_engine(**room)
    slots = adapters(engine.model, 2)
    flood = [engine.submit(ask(f"question {n}", "adapter0", max_tokens=60), slot=slots["adapter0"]) for n in range(100)]
    next(iter(flood[0]))
    late = ask("let me in", "adapter1", max_tokens=30)
    before = len(steps)
    answer = engine.submit(late, slot=slots["adapter1"]).result(60)
    served = [n for n, step in enumerate(steps[before:]) if any(slot == slots["adapter1"] for slot, _, _ in step)]
    assert served[0] <= 3
    assert len(served) == 30, "every step after its first gives it a token"
    assert served[-1] - served[0] == 29
    assert not all(generation.done for generation in flood)
    for generation in flood[1:]:
        generation.cancel()
    first = flood[0].result(60)
    assert first.stop_reason == "length"
    expected = alone(engine.model, engine.tokenizer, [(flood[0].request, slots["adapter0"]), (late, slots["adapter1"])])
    assert [first, answer] == expected


def test_a_step_has_at_most_max_adapters_and_everybody_gets_turns(open_engine: Open, steps: Steps) -> None:
    engine = open_engine(max_adapters=2)
    slots = adapters(engine.model, 5)
    asks = [(ask(f"I am {who}", who, max_tokens=20), slot) for who, slot in slots.items()]
    with Held(engine):
        running = [engine.submit(request, slot=slot) for request, slot in asks]
    answers = [generation.result(60) for generation in running]
    distinct = [len({slot for slot, _, _ in step} - {-1}) for step in steps]
    assert max(distinct) == 2
    assert engine.counters().adapters_in_step <= 2
    middle = steps[len(steps) // 4 : len(steps) // 2]
    assert {slot for step in middle for slot, _, _ in step} >= set(slots.values()) - {-1}, "turns go round"
    assert answers == alone(engine.model, engine.tokenizer, asks)


def test_revisions_of_one_adapter_take_turns_too(open_engine: Open, steps: Steps) -> None:
    engine = open_engine(max_adapters=1)
    slots = adapters(engine.model, 2)
    with Held(engine):
        running = [
            engine.submit(ask("same question", f"alice@{n}", max_tokens=20), slot=slots[f"adapter{n}"]) for n in (0, 1)
        ]
    assert running[0].result(60).text != running[1].result(60).text
    order = [step[0][0] for step in steps]
    assert max(len(run) for run in "".join(map(str, order)).replace("10", "1 0").replace("01", "0 1").split()) <= 2


def test_decodes_come_first_and_prompts_within_the_budget(open_engine: Open, steps: Steps) -> None:
    engine = open_engine(prefill_tokens=24)
    first = engine.submit(ask("x" * 10, max_tokens=200))
    next(iter(first))
    second = engine.submit(ask("y" * 100, max_tokens=3))
    second.result(60)
    first.cancel()
    mixed = [step for step in steps if len(step) == 2]
    assert [length for step in mixed for _, _, length in step if length > 1] == [24, 24, 24, 24, 4]
    assert all(any(length == 1 for _, _, length in step) for step in mixed)


def test_fixed_chunks_depend_on_nothing_but_the_prompt(open_engine: Open, steps: Steps) -> None:
    engine = open_engine(batch_invariant=True, prefill_tokens=100)
    asks = [(ask("z" * 210 + end, max_tokens=4), -1) for end in ("", "a", "bc")]
    with Held(engine):
        running = [engine.submit(request) for request, _ in asks]
    answers = [generation.result(60) for generation in running]
    engine.submit(asks[2][0]).result(60)
    pieces = {(start, length) for step in steps for _, start, length in step if length > 1}
    assert pieces <= {(0, TILE), (TILE, TILE), (2 * TILE, TILE), *((3 * TILE, n) for n in (18, 19, 20))}
    assert engine.counters().tokens_from_prefixes == 3 * 3 * TILE
    assert answers == alone(engine.model, engine.tokenizer, asks)


def test_what_waits_beyond_the_limit_is_refused_with_a_time_to_come_again(open_engine: Open) -> None:
    engine = open_engine(max_sequences=1, queue_limit=2)
    for _ in range(3):
        engine.submit(ask("short", max_tokens=1)).result(60)
    running = engine.submit(ask("x", max_tokens=400))
    next(iter(running))
    waiting = [engine.submit(ask("y", max_tokens=2)) for _ in range(2)]
    hints = []
    for _ in range(2):
        with pytest.raises(CapacityError, match="queue_limit is 2") as caught:
            engine.submit(ask("z"))
        hints.append(caught.value.retry_after_s)
    assert 0 < hints[0] < hints[1]
    assert engine.counters().refused == 2
    waiting[0].cancel()
    assert waiting[0].result(60).stop_reason == "cancelled"
    running.cancel()
    assert waiting[1].result(60).stop_reason == "length"
    assert engine.submit(ask("z", max_tokens=1)).result(60).stop_reason == "length"


def test_a_sequence_that_gave_way_goes_on_as_if_nothing_had_been(open_engine: Open) -> None:
    engine = open_engine(kv_tokens=128)
    asks = [(ask("abc" * n, max_tokens=60, temperature=1.0, seed=n), -1) for n in range(1, 6)]
    running = [engine.submit(request) for request, _ in asks]
    answers = [generation.result(60) for generation in running]
    assert engine.counters().preemptions > 0
    assert answers == alone(engine.model, engine.tokenizer, asks)
    assert engine.cache.free_tokens == engine.cache.capacity_tokens - engine.counters().kv_tokens_kept


def test_a_request_joins_when_its_adapter_has_come(open_engine: Open) -> None:
    engine = open_engine(max_sequences=1)
    slots = adapters(engine.model, 1)
    slot: Future[int] = Future()
    cold = ask("cold", "adapter0", max_tokens=5)
    loading = engine.submit(cold, slot=slot)
    warm = engine.submit(ask("warm", max_tokens=5)).result(60)
    assert warm.stop_reason == "length", "what loads holds no place"
    assert engine.counters().requests_loading == 1
    assert not loading.done
    slot.set_result(slots["adapter0"])
    assert loading.result(60) == alone(engine.model, engine.tokenizer, [(cold, slots["adapter0"])])[0]
    assert engine.counters().requests_waiting == 0


def test_a_load_that_fails_or_is_given_up_ends_its_request_alone(open_engine: Open) -> None:
    engine = open_engine(queue_limit=3)
    broken, dropped, left, late = (Future[int]() for _ in range(4))
    ended: list[str] = []
    fails = engine.submit(ask("a"), on_end=lambda: ended.append("broken"), slot=broken)
    drops = engine.submit(ask("b"), on_end=lambda: ended.append("dropped"), slot=dropped)
    leaves = engine.submit(ask("c"), on_end=lambda: ended.append("left"), slot=left)
    with pytest.raises(CapacityError, match="3 requests wait"):
        engine.submit(ask("d"), slot=late)
    leaves.cancel()
    assert leaves.result(60).stop_reason == "cancelled"
    broken.set_exception(CorruptStore("its bytes do not match"))
    dropped.cancel()
    with pytest.raises(CorruptStore, match="bytes"):
        fails.result(60)
    with pytest.raises(MintbookError, match="was cancelled"):
        drops.result(60)
    left.set_result(0)
    assert engine.submit(ask("e", max_tokens=1)).result(60).stop_reason == "length"
    assert sorted(ended) == ["broken", "dropped", "left"]
    assert engine.counters().finished == {"cancelled": 1, "error": 2, "length": 1}


def test_closing_ends_what_loads_and_what_is_set_aside(open_engine: Open) -> None:
    engine = open_engine(kv_tokens=64)
    ended: list[str] = []
    for who in ("base", "other"):
        engine.submit(ask("y", who, max_tokens=60), on_end=partial(ended.append, who))
    engine.submit(ask("x", max_tokens=1), on_end=partial(ended.append, "loading"), slot=Future())
    waiting = [engine.submit(ask("y", max_tokens=60), on_end=partial(ended.append, "waiting")) for _ in range(9)]
    while not engine.counters().preemptions:
        time.sleep(0.001)
    engine.close()
    with pytest.raises(MintbookError, match="closed"):
        waiting[-1].result(60)
    assert sorted(ended) == ["base", "loading", "other", *["waiting"] * 9]


def test_a_prompt_with_a_token_that_the_base_lacks_fails_alone(open_engine: Open) -> None:
    engine = open_engine()
    good = ask("good", max_tokens=20)
    with Held(engine):
        running = [engine.submit(good), engine.submit(ask([5, 100_000])), engine.submit(good)]
    with pytest.raises(IndexError):
        running[1].result(60)
    expected = alone(engine.model, engine.tokenizer, [(good, -1)])[0]
    assert running[0].result(60) == running[2].result(60) == expected
