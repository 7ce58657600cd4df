"""KV blocks: adjacent when possible, given back, and refused when they are not there."""

from __future__ import annotations

import pytest
import torch

from mintbook.errors import CapacityError
from mintbook.model.kv_cache import BLOCK, KVCache


def test_blocks_are_adjacent_while_they_can_be() -> None:
    cache = KVCache(8 * BLOCK, torch.device("cpu"))
    tables = [cache.allocate(BLOCK) for _ in range(8)]
    for number in (1, 4, 5, 7):
        cache.release(tables[number])
    assert cache.allocate(2 * BLOCK).blocks == (4, 5)
    scattered = cache.allocate(BLOCK + 1)
    assert scattered.blocks == (1, 7)
    assert not scattered.contiguous
    assert cache.free_tokens == 0


def test_what_is_not_there_is_refused_and_nothing_is_taken() -> None:
    cache = KVCache(4 * BLOCK, torch.device("cpu"))
    cache.allocate(3 * BLOCK)
    with pytest.raises(CapacityError, match=f"room for {BLOCK} tokens now") as caught:
        cache.allocate(BLOCK + 1)
    assert caught.value.retry_after_s > 0
    assert cache.free_tokens == BLOCK


def test_rows_read_back_what_was_written() -> None:
    cache = KVCache(4 * BLOCK, torch.device("cpu"))
    first, second = cache.allocate(BLOCK), cache.allocate(BLOCK)
    cache.release(first)
    cache.allocate(1)
    cache.release(second)
    table = cache.allocate(3 * BLOCK)
    keys = torch.randn(20, 2, 4)
    cache.write(0, table.rows(0, 20, cache.device), keys, keys + 1)
    read = cache.read(0, table.rows(5, 20, cache.device))
    assert torch.equal(read[0], keys[5:])
    assert torch.equal(read[1], keys[5:] + 1)
