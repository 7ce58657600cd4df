"""Many requests in little room: every answer is the one that its request gets alone, and nothing is left behind."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from asking import adapters, alone, ask
from tiny import load_tiny

from mintbook.config import EngineConfig
from mintbook.engine.engine import Engine
from mintbook.engine.request import Completion, Request
from mintbook.model.kv_cache import BLOCK
from mintbook.model.packed_model import PackedModel

RULES = {
    "little room": {"kv_tokens": 256, "max_sequences": 12},
    "few adapters in a step": {"kv_tokens": 320, "max_adapters": 2, "max_sequences": 12},
    "fixed chunks": {"kv_tokens": 320, "batch_invariant": True, "prefill_tokens": 80},
    "small chunks": {"kv_tokens": 256, "prefill_tokens": 24},
    "no prefixes": {"kv_tokens": 192, "prefix_cache": False, "max_sequences": 5},
}


@dataclass
class Crowd:
    model: PackedModel
    asks: list[tuple[Request, int]]
    expected: list[Completion]


@pytest.fixture(scope="module")
def crowd(tiny_base_folder: Path, tiny_tokenizer: object) -> Crowd:
    """64 requests of five adapters and the base, for prompts with few beginnings, and their answers one by one."""
    model = load_tiny(tiny_base_folder, torch.float32)
    draw = random.Random(0)
    slots = adapters(model, 5)
    beginnings = [[draw.randrange(4, 260) for _ in range(length)] for length in (16, 33, 33, 70)]
    asks = []
    for number in range(64):
        who = draw.choice(list(slots))
        tokens = [*draw.choice(beginnings), *(draw.randrange(4, 260) for _ in range(draw.randrange(1, 20)))]
        sampling = {"max_tokens": draw.randrange(1, 24), "temperature": draw.choice((0, 1.0)), "seed": number}
        asks.append((ask(tokens, who, **sampling), slots[who]))
    return Crowd(model, asks, alone(model, tiny_tokenizer, asks))


@pytest.mark.parametrize("name", RULES)
def test_requests_that_crowd_each_other_answer_as_they_do_alone(
    crowd: Crowd, tiny_tokenizer: object, name: str
) -> None:
    draw = random.Random(name)
    engine = Engine(crowd.model, tiny_tokenizer, EngineConfig(**RULES[name]))
    try:
        running = [engine.submit(request, slot=slot) for request, slot in crowd.asks]
        cancelled = {number for number in range(64) if draw.random() < 0.15}
        for number in cancelled:
            running[number].cancel()
        answers = [generation.result(60) for generation in running]
        counters = engine.counters()
    finally:
        engine.close()
    for number, (answer, wanted) in enumerate(zip(answers, crowd.expected, strict=True)):
        if number in cancelled and answer.stop_reason == "cancelled":
            assert answer.tokens == wanted.tokens[: len(answer.tokens)]
        else:
            assert answer == wanted, number
    assert counters.preemptions > 0
    assert counters.tokens_from_prefixes > 0 or name in ("fixed chunks", "no prefixes")
    assert counters.kv_tokens_used == counters.kv_tokens_kept
    engine.scheduler.room.prefixes.make_room(engine.cache.blocks)
    assert engine.cache.free_blocks * BLOCK == engine.cache.capacity_tokens
    assert len(engine.scheduler.room.prefixes) == 0
