"""The engine in numbers, and the text that Prometheus reads."""

from __future__ import annotations

import json
import re

import pytest
from asking import adapters, ask

from mintbook.config import EngineConfig
from mintbook.engine.counters import Tally, Timings
from mintbook.engine.engine import Engine
from mintbook.engine.prometheus import prometheus_text
from mintbook.model.packed_model import PackedModel

LINE = re.compile(r'mintbook_[a-z_]+(\{[a-z]+="[^"]+"\})? [0-9.e+-]+')


def test_what_was_done_is_counted_and_told_to_prometheus(tiny_model: PackedModel, tiny_tokenizer: object) -> None:
    engine = Engine(tiny_model, tiny_tokenizer, EngineConfig(kv_tokens=1024))
    try:
        slots = adapters(tiny_model, 1)
        running = [engine.submit(ask("hello there", who, max_tokens=5), slot=slot) for who, slot in slots.items()]
        for generation in running:
            generation.result(60)
        long = engine.submit(ask("hello", max_tokens=500))
        next(iter(long))
        assert engine.counters().requests_running == 1
        long.cancel()
        long.result(60)
        counters = engine.counters()
    finally:
        engine.close()
    assert counters.finished == {"length": 2, "cancelled": 1}
    assert counters.tokens_read == 2 * len("hello there") + len("hello")
    assert counters.tokens_generated == 10 + len(long.result().tokens)
    assert sum(counters.first_token_s.counts) == 3
    assert sum(counters.next_token_s.counts) == counters.tokens_generated - 3
    assert 0 < counters.first_token_s.total < 60
    assert counters.requests_running == counters.requests_waiting == counters.requests_preempted == 0
    assert counters.kv_tokens_used + counters.kv_tokens_free == 1024
    assert json.loads(json.dumps(counters.to_dict()))["steps"] == counters.steps
    text = prometheus_text(counters)
    for line in text.splitlines():
        assert line.startswith(("# HELP mintbook_", "# TYPE mintbook_")) or LINE.fullmatch(line), line
    assert 'mintbook_requests_finished_total{reason="length"} 2\n' in text
    assert f"mintbook_generated_tokens_total {counters.tokens_generated}\n" in text
    assert 'mintbook_first_token_seconds_bucket{le="+Inf"} 3\nmintbook_first_token_seconds_sum ' in text
    assert "mintbook_first_token_seconds_count 3\n" in text


def test_a_histogram_counts_a_value_at_its_first_bound() -> None:
    timings = Timings((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 2.0):
        timings.add(seconds)
    assert timings.histogram().counts == (2, 1, 1)
    assert timings.total == pytest.approx(2.65)


def test_the_hint_follows_the_time_between_ends() -> None:
    slow, fast = Tally(), Tally()
    assert slow.refuse() == 1.0
    for n in range(30):
        slow.end("length", n * 3.0)
        fast.end("length", n * 0.1)
    assert slow.refuse() == pytest.approx(3, rel=0.05)
    assert fast.refuse() == pytest.approx(0.1, rel=0.05)
    assert fast.refuse() == pytest.approx(0.2, rel=0.05), "the second to be refused comes after the first"
