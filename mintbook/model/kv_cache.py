"""Keys and values of the tokens already read, in blocks that sequences borrow, share and give back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from mintbook.errors import CapacityError
from mintbook.model.upload import upload

BLOCK = 16


def blocks_for(tokens: int) -> int:
    """Return how many blocks hold ``tokens`` tokens."""
    return -(-tokens // BLOCK)


class BlockTable:
    """The blocks of one sequence, in order; ``contiguous`` when each follows the one before."""

    __slots__ = ("blocks", "contiguous", "promised")

    def __init__(self, blocks: Sequence[int], promised: range = range(0)) -> None:
        self.blocks = list(blocks)
        self.contiguous = _adjacent(blocks)
        self.promised = promised
        """Free blocks after the last one that others leave alone while they find room elsewhere."""

    @property
    def tokens(self) -> int:
        """Tokens that fit."""
        return len(self.blocks) * BLOCK

    def row(self, token: int) -> int:
        """Return where one token of the sequence lies in the cache."""
        return self.blocks[token // BLOCK] * BLOCK + token % BLOCK

    def rows(self, start: int, end: int, device: torch.device) -> Tensor | slice:
        """Return where tokens ``start`` to ``end`` of the sequence lie in the cache: a slice, or their row numbers."""
        if self.contiguous:
            first = self.blocks[0] * BLOCK
            return slice(first + start, first + end)
        tokens = np.arange(start, end)
        return upload([np.array(self.blocks)[tokens // BLOCK] * BLOCK + tokens % BLOCK], device)[0]


@dataclass(frozen=True, slots=True, eq=False)
class Aside:
    """A preempted sequence's keys and values in host memory: per layer two tensors ``[tokens, K, D]``."""

    tokens: int
    layers: dict[int, tuple[Tensor, Tensor]]


class KVCache:
    """Keys and values of every layer, ``[capacity + BLOCK, K, D]`` each (tokens, key-value heads, head size).

    A block is free when nobody holds it: sequences hold theirs, and a prefix that is kept holds its own once more. The
    allocator keeps a sequence's blocks side by side where it can, with room to grow, so that a prompt's chunks read a
    view and decode reads memory in order: 32 sequences of 512 tokens of the 135M base take 54 ms of attention a step
    so, 61 ms scattered, and 33 ms sharing three quarters of their blocks (bf16, CPU time of one thread, AVX512-BF16).
    """

    def __init__(self, capacity_tokens: int, device: torch.device) -> None:
        self.blocks = max(1, capacity_tokens // BLOCK)
        self.spare_block = self.blocks
        """A block after the last one that no sequence ever holds: padding rows of a decode step write there."""
        self.device = device
        self._holders = [0] * self.blocks
        # 0 marks what may be taken, so that bytes.find() searches for a run of blocks.
        self._used = bytearray(self.blocks)
        self._spoken_for = bytearray(self.blocks)
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.free_blocks = self.blocks

    @property
    def capacity_tokens(self) -> int:
        """Tokens that fit in all."""
        return self.blocks * BLOCK

    @property
    def free_tokens(self) -> int:
        """Tokens that fit now."""
        return self.free_blocks * BLOCK

    @property
    def used_bytes(self) -> int:
        """Bytes of the blocks that are held now, over all layers."""
        rows = (self.blocks - self.free_blocks) * BLOCK
        return sum(2 * rows * keys.shape[1] * keys.shape[2] * keys.element_size() for keys, _ in self._layers.values())

    def holders(self, block: int) -> int:
        """Return how many hold a block."""
        return self._holders[block]

    def allocate(self, tokens: int, *, likely: int = 0) -> BlockTable:
        """Borrow blocks for ``tokens`` tokens, where ``likely`` would fit side by side if there is such a place.

        Raises `CapacityError` when they are not there now.
        """
        count = blocks_for(tokens)
        return self._take(count, max(count, blocks_for(likely)))

    def grow(self, table: BlockTable) -> None:
        """Add a block to a table, in place: the one that follows the last where that is free.

        Raises `CapacityError` when none is free.
        """
        following = table.blocks[-1] + 1
        if following < self.blocks and not self._used[following]:
            self._hold(following)
            table.blocks.append(following)
        else:
            table.blocks += self._take(1, 1).blocks
            table.contiguous = False

    def hold(self, blocks: Sequence[int]) -> None:
        """Hold blocks once more, so that they stay when another holder lets go."""
        for block in blocks:
            self._hold(block)

    def let_go(self, blocks: Sequence[int]) -> None:
        """Hold blocks once less; one that nobody holds is free."""
        for block in blocks:
            self._holders[block] -= 1
            if not self._holders[block]:
                self._used[block] = self._spoken_for[block] = 0
                self.free_blocks += 1

    def release(self, table: BlockTable) -> None:
        """Give a sequence's blocks back."""
        self.let_go(table.blocks)
        for block in table.promised:
            self._spoken_for[block] = self._used[block]

    def write(self, layer: int, rows: Tensor | slice, key: Tensor, value: Tensor) -> None:
        """Store ``key`` and ``value`` ``[T, K, D]`` of one layer at ``rows``."""
        if layer not in self._layers:
            self._layers[layer] = (self._empty(key), self._empty(value))
        keys, values = self._layers[layer]
        keys[rows] = key
        values[rows] = value

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return all keys and all values ``[capacity + BLOCK, K, D]`` of one layer."""
        return self._layers[layer]

    def read(self, layer: int, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Return keys and values ``[T, K, D]`` of one layer: views when ``rows`` is a slice, copies otherwise."""
        keys, values = self._layers[layer]
        return keys[rows], values[rows]

    def set_aside(self, table: BlockTable, tokens: int) -> Aside:
        """Copy a sequence's first ``tokens`` tokens to host memory and give its blocks back."""
        rows = table.rows(0, tokens, self.device)
        layers = {
            layer: (self._copy_out(keys[rows]), self._copy_out(values[rows]))
            for layer, (keys, values) in self._layers.items()
        }
        self.release(table)
        return Aside(tokens, layers)

    def take_back(self, aside: Aside, table: BlockTable) -> None:
        """Copy what was set aside to the first rows of ``table``, bit for bit."""
        rows = table.rows(0, aside.tokens, self.device)
        for layer, (keys, values) in aside.layers.items():
            self.write(layer, rows, keys.to(self.device, non_blocking=True), values.to(self.device, non_blocking=True))

    def _empty(self, like: Tensor) -> Tensor:
        rows = (self.spare_block + 1) * BLOCK
        return torch.empty((rows, *like.shape[1:]), dtype=like.dtype, device=like.device)

    def _copy_out(self, numbers: Tensor) -> Tensor:
        # Nobody waits for the copy: only `take_back` reads it, on the same stream, after it.
        there = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=numbers.is_cuda)
        return there.copy_(numbers, non_blocking=True)

    def _hold(self, block: int) -> None:
        if not self._holders[block]:
            self._used[block] = self._spoken_for[block] = 1
            self.free_blocks -= 1
        self._holders[block] += 1

    def _take(self, count: int, likely: int) -> BlockTable:
        if count > self.free_blocks:
            raise CapacityError(
                f"The KV cache has room for {self.free_tokens} tokens now, and {count * BLOCK} were asked for "
                f"(capacity {self.capacity_tokens}). Wait for other requests to end, or ask for fewer max_tokens."
            )
        at = self._spoken_for.find(bytes(likely))
        if at < 0:
            at = self._spoken_for.find(bytes(count))
        if at < 0:
            at = self._used.rfind(bytes(count))  # far from where the one who was promised it begins
        taken = list(range(at, at + count)) if at >= 0 else [b for b in range(self.blocks) if not self._used[b]][:count]
        self.hold(taken)
        end = last = taken[-1] + 1
        while end - last < likely - count and end < self.blocks and not self._spoken_for[end]:
            self._spoken_for[end] = 1
            end += 1
        return BlockTable(taken, range(last, end))


def _adjacent(blocks: Sequence[int]) -> bool:
    return all(b == a + 1 for a, b in pairwise(blocks))
