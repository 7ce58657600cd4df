"""How each Triton kernel is launched for a batch: its grid, its compile-time arguments, its tile.

The launchers launch with these and `inspect` counts with them, so that the two cannot drift apart. J targets share an
input; ``widths`` are the columns of each target's side: the one H of A, or every O_j of Bᵀ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from mintbook_kernels.segments import Segments
from mintbook_kernels.tiles import GATHERED, GROUPED, Tile, blocks, tile_for


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch of one kernel."""

    kernel: str
    grid: tuple[int, ...]
    constants: dict[str, Any]
    """The compile-time arguments, but for ALIGN, which is the bank's."""
    tile: Tile

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of the launch: `constants`, and how to compile."""
        return {**self.constants, **self.tile.options}

    @property
    def programs(self) -> int:
        """How many programs are started."""
        return prod(self.grid)


def shrink_launch(segments: Segments, itemsize: int, targets: int, *, shared: bool) -> Launch:
    """One program for each chunk, block of rank-rows and target; ``shared``: of all targets, counted through."""
    lanes = targets * segments.rank if shared else segments.rank
    tile = tile_for(GROUPED[itemsize], lanes)
    constants = {"SHARED": shared, "J": targets, "BLOCK_M": segments.chunk_rows}
    sides = {"BLOCK_R": tile.rank, "BLOCK_K": tile.columns}
    grid = (segments.chunk_slot.numel(), blocks(lanes, tile.rank), 1 if shared else targets)
    return Launch("shrink_kernel", grid, constants | sides, tile)


def expand_launch(segments: Segments, itemsize: int, widths: Sequence[int]) -> Launch:
    """One program for each chunk and block of a target's columns."""
    tile = tile_for(GROUPED[itemsize], segments.rank)
    constants = {"J": len(widths), "BLOCK_M": segments.chunk_rows, "BLOCK_R": tile.rank, "BLOCK_N": tile.columns}
    return Launch("expand_kernel", (segments.chunk_slot.numel(), _across(widths, tile)), constants, tile)


def factor_grad_launch(
    segments: Segments, itemsize: int, targets: int, widths: Sequence[int], *, shared: bool
) -> Launch:
    """One program for each active slot, block of rank-rows and block of columns; ``shared`` as in `shrink_launch`."""
    lanes = targets * segments.rank if shared else segments.rank
    tile = tile_for(GROUPED[itemsize], lanes)
    grid = (segments.active.numel(), blocks(lanes, tile.rank), _across(widths, tile))
    constants = {"SHARED": shared, "J": targets, "BLOCK_M": segments.chunk_rows}
    return Launch("factor_grad_kernel", grid, constants | {"BLOCK_R": tile.rank, "BLOCK_N": tile.columns}, tile)


def input_grad_launch(segments: Segments, itemsize: int, targets: int, width: int) -> Launch:
    """One program for each chunk and block of columns."""
    tile = tile_for(GROUPED[itemsize], targets * segments.rank)
    constants = {"J": targets, "BLOCK_M": segments.chunk_rows, "BLOCK_R": tile.rank, "BLOCK_N": tile.columns}
    return Launch("input_grad_kernel", (segments.chunk_slot.numel(), blocks(width, tile.columns)), constants, tile)


def gathered_shrink_launch(segments: Segments, targets: int) -> Launch:
    """One program for each row and block of rank-rows of all targets."""
    lanes = targets * segments.rank
    tile = tile_for(GATHERED, lanes)
    constants = {"J": targets, "BLOCK_R": tile.rank, "BLOCK_K": tile.columns}
    return Launch("gathered_shrink_kernel", (segments.tokens, blocks(lanes, tile.rank)), constants, tile)


def gathered_expand_launch(segments: Segments, widths: Sequence[int]) -> Launch:
    """One program for each row and block of a target's columns."""
    tile = tile_for(GATHERED, segments.rank)
    constants = {"J": len(widths), "BLOCK_R": tile.rank, "BLOCK_N": tile.columns}
    return Launch("gathered_expand_kernel", (segments.tokens, _across(widths, tile)), constants, tile)


def _across(widths: Sequence[int], tile: Tile) -> int:
    return sum(blocks(width, tile.columns) for width in widths)
