# Triton's decorators and kernel arguments carry no types.
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-incomplete-defs=False
"""How the rank-rows and columns of targets that share an input are numbered inside the Triton kernels.

The rank-rows that one slot has at J targets are counted through, target by target, and each is a *lane* of a tile:
rank 8 at q, k and v is 24 lanes, not three tiles. A *side* is where the J targets' A, or their Bᵀ, lie in the bank.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from mintbook_kernels.factors import Factors


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """The A, or the Bᵀ, of J targets, and the columns of the tensor that they are multiplied with."""

    bank: Tensor
    """The first target's ``[N, width]``."""
    table: Tensor
    """``[3, J]`` int64: the numbers from the first target to each, its first column there, its width."""
    targets: int
    align: int
    """A power of two that divides every number of the table."""
    widths: tuple[int, ...]

    @classmethod
    def of_a(cls, factors: Factors) -> Side:
        """Return the side that meets ``x [T, H]``: all targets have the same columns."""
        return cls._of(factors.a, (0,) * factors.targets)

    @classmethod
    def of_b(cls, factors: Factors) -> Side:
        """Return the side that meets ``y [T, ΣO]``: each target has its own columns."""
        return cls._of(factors.b, factors.columns[:-1])

    @classmethod
    def _of(cls, banks: tuple[Tensor, ...], columns: tuple[int, ...]) -> Side:
        first, size = banks[0].data_ptr(), banks[0].element_size()
        widths = tuple(bank.shape[1] for bank in banks)
        numbers = (*((bank.data_ptr() - first) // size for bank in banks), *columns, *widths)
        return cls(banks[0], _table(numbers, banks[0].device), len(banks), gcd(16, *numbers), widths)


# Layers of one kind have the same numbers, so that few tables are ever copied to the device. None is ever dropped: a
# captured CUDA graph reads its tables as long as it lives.
@cache
def _table(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device=device)


@triton.jit
def lanes_of(target, slot, slots, rank, cap, SHARED: tl.constexpr, J: tl.constexpr):
    """Return how many rank-rows, min(rank, cap), a slot has at one target; if SHARED, at all J together."""
    total = tl.minimum(tl.load(rank + target * slots + slot), tl.load(cap + target * slots + slot))
    if SHARED:
        for j in tl.static_range(1, J):
            total += tl.minimum(tl.load(rank + j * slots + slot), tl.load(cap + j * slots + slot))
    return total


@triton.jit
def target_of_lane(lane, first_target, slot, slots, rank, cap, SHARED: tl.constexpr, J: tl.constexpr):
    """Return the target of each lane, and the number of its rank-row inside the slot."""
    target = tl.zeros_like(lane) + first_target
    r = lane
    if SHARED:
        done = 0
        for j in tl.static_range(J - 1):
            done += tl.minimum(tl.load(rank + j * slots + slot), tl.load(cap + j * slots + slot))
            target = tl.where(lane >= done, j + 1, target)
            r = tl.where(lane >= done, lane - done, r)
    return target, r


@triton.jit
def target_of_tile(tile, table, J: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return the target that a tile of columns belongs to, and the number of the tile inside it."""
    target = tile * 0
    first = tile * 0
    done = 0
    for j in tl.static_range(J - 1):
        done += ((tl.load(table + 2 * J + j) + BLOCK_N - 1) // BLOCK_N).to(tl.int32)
        target = tl.where(tile >= done, j + 1, target)
        first = tl.where(tile >= done, done, first)
    return target, tile - first


@triton.jit
def column_and_width(table, target, J: tl.constexpr, ALIGN: tl.constexpr):
    """Return a target's first column and its width."""
    column = tl.multiple_of(tl.load(table + J + target), ALIGN)
    width = tl.multiple_of(tl.load(table + 2 * J + target).to(tl.int32), ALIGN)
    return column, width
