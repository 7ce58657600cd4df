"""Keys and values of the tokens already read, in blocks that sequences borrow and give back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mintbook.errors import CapacityError

BLOCK = 16


@dataclass(frozen=True, slots=True)
class BlockTable:
    """The blocks of one sequence, in order; ``contiguous`` when each follows the one before."""

    blocks: tuple[int, ...]

    @property
    def contiguous(self) -> bool:
        """Whether the sequence's tokens lie side by side, so that a view reads them without a copy."""
        return all(b == a + 1 for a, b in zip(self.blocks, self.blocks[1:], strict=False))

    def rows(self, start: int, end: int, device: torch.device) -> Tensor | slice:
        """Return where tokens ``start`` to ``end`` of the sequence lie in the cache: a slice, or their row numbers."""
        if self.contiguous:
            first = self.blocks[0] * BLOCK
            return slice(first + start, first + end)
        tokens = torch.arange(start, end, device=device)
        blocks = torch.tensor(self.blocks, device=device)
        return blocks[tokens // BLOCK] * BLOCK + tokens % BLOCK


class KVCache:
    """Keys and values of every layer, ``[capacity, K, D]`` each (tokens, key-value heads, head size).

    A sequence asks for all the blocks it can come to need when it is admitted, so that it never runs out half-way.
    The allocator prefers blocks side by side: on a CPU, gathering scattered ones costs more than the attention itself.
    """

    def __init__(self, capacity_tokens: int, device: torch.device) -> None:
        self.blocks = max(1, capacity_tokens // BLOCK)
        self.device = device
        self._free = list(range(self.blocks))
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def capacity_tokens(self) -> int:
        """Tokens that fit in all."""
        return self.blocks * BLOCK

    @property
    def free_tokens(self) -> int:
        """Tokens that fit now."""
        return len(self._free) * BLOCK

    @property
    def used_bytes(self) -> int:
        """Bytes of the blocks that sequences hold now, over all layers."""
        rows = (self.blocks - len(self._free)) * BLOCK
        return sum(2 * rows * keys.shape[1] * keys.shape[2] * keys.element_size() for keys, _ in self._layers.values())

    def allocate(self, tokens: int) -> BlockTable:
        """Borrow blocks for ``tokens`` tokens; raise `CapacityError` when they are not there now."""
        count = -(-tokens // BLOCK)
        if count > len(self._free):
            raise CapacityError(
                f"The KV cache has room for {self.free_tokens} tokens now, and {tokens} were asked for "
                f"(capacity {self.capacity_tokens}). Wait for other requests to end, or ask for fewer max_tokens."
            )
        at = self._run_of(count)
        taken = self._free[at : at + count]
        del self._free[at : at + count]
        return BlockTable(tuple(taken))

    def release(self, table: BlockTable) -> None:
        """Give a sequence's blocks back."""
        self._free = sorted([*self._free, *table.blocks])

    def write(self, layer: int, rows: Tensor | slice, key: Tensor, value: Tensor) -> None:
        """Store ``key`` and ``value`` ``[T, K, D]`` of one layer at ``rows``."""
        if layer not in self._layers:
            shape = (self.capacity_tokens, *key.shape[1:])
            self._layers[layer] = (
                torch.empty(shape, dtype=key.dtype, device=key.device),
                torch.empty((*shape[:-1], value.shape[-1]), dtype=value.dtype, device=value.device),
            )
        keys, values = self._layers[layer]
        keys[rows] = key
        values[rows] = value

    def read(self, layer: int, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Return keys and values ``[T, K, D]`` of one layer: views when ``rows`` is a slice, copies otherwise."""
        keys, values = self._layers[layer]
        return keys[rows], values[rows]

    def _run_of(self, count: int) -> int:
        """Return where in the free list ``count`` adjacent blocks begin, or 0 when no such run exists."""
        start = 0
        for at in range(len(self._free)):
            if at and self._free[at] != self._free[at - 1] + 1:
                start = at
            if at - start + 1 == count:
                return start
        return 0
