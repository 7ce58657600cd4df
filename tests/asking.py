"""What the engine's tests ask, and the answers that nothing else can have touched."""

from __future__ import annotations

from typing import Any

import torch

from mintbook.config import EngineConfig, LoraConfig, SampleConfig
from mintbook.engine.engine import Engine
from mintbook.engine.request import Completion, Request
from mintbook.model.inits import initial_page
from mintbook.model.packed_model import PackedModel

PLAIN = {"prefix_cache": False, "max_sequences": 1, "kv_tokens": 4096}


def ask(tokens: list[int] | str, who: str = "base", end_ids: frozenset[int] = frozenset(), **sampling: Any) -> Request:
    """A request of ``who``, whose keys and values may be shared with others of the same name."""
    ids = tuple(4 + byte for byte in tokens.encode()) if isinstance(tokens, str) else tuple(tokens)
    return Request(
        tokens=ids, sampling=SampleConfig(**sampling), revision=who, end_ids=end_ids, cache_key=who, digest=who
    )


def adapters(model: PackedModel, count: int, rank: int = 2) -> dict[str, int]:
    """Load random adapters that change what the base says, and return their slots by name; the base is one of them."""
    slots = {"base": -1}
    for seed in range(count):
        page = initial_page(model.sites, LoraConfig(rank=rank, seed=seed))
        generator = torch.Generator().manual_seed(seed)
        for _, b in page.factors().values():
            b.copy_(torch.randn(b.shape, generator=generator) * 0.2)
        slots[f"adapter{seed}"] = model.bank.load(page)
    return slots


def alone(model: PackedModel, tokenizer: object, asks: list[tuple[Request, int]]) -> list[Completion]:
    """Each answer by an engine that has nothing else to do and remembers nothing."""
    engine = Engine(model, tokenizer, EngineConfig(**PLAIN))
    try:
        return [engine.submit(request, slot=slot).result(60) for request, slot in asks]
    finally:
        engine.close()
