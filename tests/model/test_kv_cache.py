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
    assert cache.allocate(2 * BLOCK).blocks == [4, 5]
    scattered = cache.allocate(BLOCK + 1)
    assert scattered.blocks == [1, 7]
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


def test_a_sequence_grows_into_the_place_that_was_left_for_it() -> None:
    cache = KVCache(16 * BLOCK, torch.device("cpu"))
    first = cache.allocate(BLOCK, likely=4 * BLOCK)
    second = cache.allocate(BLOCK, likely=4 * BLOCK)
    for _ in range(3):
        cache.grow(first)
    assert (first.blocks, second.blocks) == ([0, 1, 2, 3], [4])
    full = cache.allocate(11 * BLOCK)
    assert cache.free_tokens == 0
    assert sorted([*first.blocks, *second.blocks, *full.blocks]) == list(range(16))
    with pytest.raises(CapacityError):
        cache.grow(first)
    for table in (first, second, full):
        cache.release(table)
    assert cache.free_tokens == cache.capacity_tokens
    assert cache.allocate(16 * BLOCK).contiguous


def test_a_sequence_that_cannot_grow_where_it_is_goes_on_elsewhere() -> None:
    cache = KVCache(8 * BLOCK, torch.device("cpu"))
    table, neighbour = cache.allocate(2 * BLOCK), cache.allocate(BLOCK)
    for _ in range(2):
        cache.grow(table)
    assert table.blocks == [0, 1, 3, 4]
    assert neighbour.blocks == [2]
    assert not table.contiguous
    keys = torch.randn(4 * BLOCK, 2, 4)
    cache.write(0, table.rows(0, 4 * BLOCK, cache.device), keys, -keys)
    assert torch.equal(cache.read(0, table.rows(20, 60, cache.device))[1], -keys[20:60])
    assert [table.row(token) for token in (0, 31, 32)] == [0, 31, 48]


def test_what_is_set_aside_comes_back_bit_for_bit_wherever_it_lies() -> None:
    cache = KVCache(6 * BLOCK, torch.device("cpu"))
    table = cache.allocate(2 * BLOCK)
    keys = torch.randn(20, 2, 4)
    cache.write(3, table.rows(0, 20, cache.device), keys, keys * 2)
    aside = cache.set_aside(table, 20)
    assert cache.free_tokens == cache.capacity_tokens
    odd = [cache.allocate(BLOCK) for _ in range(6)]
    for number in (5, 2):
        cache.release(odd[number])
    back = cache.allocate(2 * BLOCK)
    assert not back.contiguous
    cache.take_back(aside, back)
    read = cache.read(3, back.rows(0, 20, cache.device))
    assert torch.equal(read[0], keys)
    assert torch.equal(read[1], keys * 2)


def test_a_shared_block_is_free_when_its_last_holder_lets_go() -> None:
    cache = KVCache(4 * BLOCK, torch.device("cpu"))
    table = cache.allocate(2 * BLOCK)
    cache.hold(table.blocks[:1])
    cache.release(table)
    assert cache.free_blocks == 3
    assert cache.holders(0) == 1
    cache.let_go([0])
    assert cache.free_blocks == 4
