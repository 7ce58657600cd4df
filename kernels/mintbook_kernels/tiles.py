"""Tile sizes of the Triton kernels: a table read in Python, so that a launch never measures anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile's rank-rows, its columns (of H or O), and the warps that compute it."""

    rank: int
    columns: int
    warps: int

    @property
    def options(self) -> dict[str, Any]:
        """How to compile: the warps, and a·b + c as one instruction (said, because Triton 3.10 changes its default)."""
        return {"num_warps": self.warps, "enable_fp_fusion": True}


# By the largest true rank in the batch. No side of a tile that enters `tl.dot` may be under 16. Not yet measured on a
# GPU: these are the largest that spill no register on sm_80, sm_90 and gfx942 (see LOG.md).
GROUPED = {
    2: {16: Tile(16, 64, 4), 32: Tile(32, 64, 4), 256: Tile(64, 64, 4)},
    4: {16: Tile(16, 64, 4), 256: Tile(32, 32, 4)},
}
"""For grouped rows and gradients, by the bytes of a number: fp32 is multiplied without tensor cores, from registers."""
GATHERED = {16: Tile(16, 256, 4), 32: Tile(32, 128, 4), 256: Tile(64, 64, 4)}
"""For gathered rows."""


def tile_for(table: dict[int, Tile], rank: int) -> Tile:
    """Return the first tile whose bound is at least ``rank``; the widest loops over what is left.

    >>> tile_for(GROUPED[2], 17).rank
    32
    """
    return next((tile for bound, tile in sorted(table.items()) if rank <= bound), table[max(table)])


def blocks(length: int, tile: int) -> int:
    """Return how many tiles cover ``length``.

    >>> blocks(65, 64)
    2
    """
    return -(-length // tile)
