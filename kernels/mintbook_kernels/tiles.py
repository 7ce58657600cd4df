"""Tile sizes of the Triton kernels: a table read in Python, so that a launch never measures anything."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile's rank-rows, its columns (of H or O), and the warps that compute it."""

    rank: int
    columns: int
    warps: int


# No side of a tile that enters `tl.dot` may be under 16. By the largest true rank in the batch. Not yet measured on a GPU: chosen so that no kernel spills (see LOG.md).
GROUPED = {16: Tile(16, 64, 4), 32: Tile(32, 64, 4), 256: Tile(64, 64, 4)}
GATHERED = {16: Tile(16, 256, 4), 32: Tile(32, 128, 4), 256: Tile(64, 64, 4)}


def tile_for(table: dict[int, Tile], rank: int) -> Tile:
    """Return the first tile whose bound is at least ``rank``; the widest loops over what is left.

    >>> tile_for(GROUPED, 17).rank
    32
    """
    return next((tile for bound, tile in sorted(table.items()) if rank <= bound), table[max(table)])


def blocks(length: int, tile: int) -> int:
    """Return how many tiles cover ``length``.

    >>> blocks(65, 64)
    2
    """
    return -(-length // tile)
