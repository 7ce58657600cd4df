"""What one launch has to do for a batch: tiles, multiply-adds and bytes, counted without running anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mintbook_kernels.launches import Launch
from mintbook_kernels.tiles import blocks

SUM_BYTES = 4
"""h, dh and the gradients of factors are fp32."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that one program takes together, and the slot whose factors they meet."""

    slot: int
    rows: int


@dataclass(frozen=True, slots=True)
class Block:
    """The columns of one target, or of all targets that share them, and the rank-rows that meet them."""

    width: int
    ranks: tuple[int, ...]
    """``[S]``."""


@dataclass(frozen=True, slots=True)
class Habit:
    """What a kernel does: how its programs divide the tiles, and which operands it reads and writes.

    The operands are h (or dh), the wide tensor (x, y or a gradient of them) and the bank.
    """

    divides: frozenset[str]
    """Of "rank" and "columns": those by which programs differ; a program loops over the other."""
    reads: frozenset[str]
    writes: frozenset[str]
    returns: bool = True
    """Whether a program without rank-rows returns at once."""


def _habit(divides: str, reads: str, writes: str, *, returns: bool = True) -> Habit:
    return Habit(frozenset(divides.split()), frozenset(reads.split()), frozenset(writes.split()), returns)


HABITS = {
    "shrink_kernel": _habit("rank", "wide bank", "h"),
    "expand_kernel": _habit("columns", "h wide bank", "wide"),
    "factor_grad_kernel": _habit("rank columns", "h wide bank", "bank"),
    "input_grad_kernel": _habit("columns", "h bank", "wide", returns=False),
    "gathered_shrink_kernel": _habit("rank", "wide bank", "h"),
    "gathered_expand_kernel": _habit("columns", "h wide bank", "wide"),
}


@dataclass(frozen=True, slots=True)
class Workload:
    """What one launch has to do."""

    rows: int
    """Rows whose slot has a rank above 0 at any target."""
    rank_rows: int
    """The ranks of the slots in use, summed over the targets."""
    products: int
    """Multiply-adds that count."""
    computed: int
    """Multiply-adds of the tiles, padding included."""
    working: int
    """Programs that do not return at once."""
    read: int
    """Bytes, every number once."""
    written: int

    @classmethod
    def of(cls, launch: Launch, parts: Sequence[Part], operands: Sequence[Block], itemsize: int) -> Workload:
        """Count a launch whose programs each take one of ``parts``, for numbers of ``itemsize`` bytes."""
        habit = HABITS[launch.kernel]
        rows = products = computed = working = entries = wide = 0
        for part in parts:
            ranks = [block.ranks[part.slot] for block in operands]
            rows += part.rows * any(ranks)
            entries += part.rows * sum(ranks)
            for block, rank in zip(operands, ranks, strict=True):
                products += part.rows * rank * block.width
                computed += _tile_area(launch, part.rows, rank, block.width)
                working += _programs(habit, launch, rank, block.width)
                wide += part.rows * block.width if rank or not habit.returns else 0
        used = {part.slot for part in parts}
        bank = sum(block.ranks[slot] * block.width for slot in used for block in operands)
        size = {
            "h": entries * SUM_BYTES,
            "wide": wide * itemsize,
            "bank": bank * (SUM_BYTES if "bank" in habit.writes else itemsize),
        }
        return cls(
            rows=rows,
            rank_rows=sum(block.ranks[slot] for slot in used for block in operands),
            products=products,
            computed=computed,
            working=working,
            read=sum(size[name] for name in habit.reads),
            written=sum(size[name] for name in habit.writes),
        )


def _tile_area(launch: Launch, rows: int, rank: int, width: int) -> int:
    lengths = {"BLOCK_M": rows, "BLOCK_R": rank, "BLOCK_K": width, "BLOCK_N": width}
    area = 1
    for name, side in launch.constants.items():
        if name in lengths:
            area *= blocks(lengths[name], side) * side
    return area


def _programs(habit: Habit, launch: Launch, rank: int, width: int) -> int:
    if rank == 0 and habit.returns:
        return 0
    count = blocks(rank, launch.tile.rank) if "rank" in habit.divides else 1
    return count * (blocks(width, launch.tile.columns) if "columns" in habit.divides else 1)
