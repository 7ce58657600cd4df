# Triton's decorators and kernel arguments carry no types.
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-incomplete-defs=False
"""Gathered rows in Triton: every row reads its own adapter's factors; nothing is sorted and ``tl.dot`` is not used."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mintbook_kernels.factors import Factors
from mintbook_kernels.lanes import Side, column_and_width, lanes_of, target_of_lane, target_of_tile
from mintbook_kernels.launches import gathered_expand_launch, gathered_shrink_launch
from mintbook_kernels.segments import Segments


@triton.jit
def gathered_shrink_kernel(
    x,
    bank,
    h,
    table,
    row_slots,
    start,
    rank,
    slots,
    page_rank,
    x_stride,
    bank_stride,
    h_stride,
    J: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """h_j[t, r] = Σ_k x[t, k] · bank_j[start + r, k] for one row and one block of rank-rows, of several targets too."""
    t = tl.program_id(0).to(tl.int64)
    slot = tl.load(row_slots + t)
    if slot < 0:
        return
    total = lanes_of(0, slot, slots, rank, rank, True, J)
    if tl.program_id(1) * BLOCK_R >= total:
        return
    lane = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    in_rank = lane < total
    target, r = target_of_lane(lane, 0, slot, slots, rank, rank, True, J)
    _, width = column_and_width(table, 0, J, ALIGN)
    bank_row = tl.multiple_of(tl.load(table + target), [ALIGN]) + (tl.load(start + slot) + r) * bank_stride
    acc = tl.zeros((BLOCK_R,), dtype=tl.float32)
    for k0 in range(0, width, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        in_width = k < width
        x_tile = tl.load(x + t * x_stride + k, mask=in_width, other=0.0).to(tl.float32)
        bank_tile = tl.load(
            bank + bank_row[:, None] + k[None, :], mask=in_rank[:, None] & in_width[None, :], other=0.0
        ).to(tl.float32)
        acc += tl.sum(bank_tile * x_tile[None, :], axis=1)
    tl.store(h + t * h_stride + target * page_rank + r, acc, mask=in_rank)


@triton.jit
def gathered_expand_kernel(
    y,
    bank,
    h,
    table,
    row_slots,
    start,
    rank,
    scale,
    slots,
    page_rank,
    y_stride,
    bank_stride,
    h_stride,
    J: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """y_j[t, n] += s_j · Σ_r h_j[t, r] · bank_j[start + r, n] for one row and one block of one target's columns."""
    t = tl.program_id(0).to(tl.int64)
    slot = tl.load(row_slots + t)
    if slot < 0:
        return
    target, tile = target_of_tile(tl.program_id(1), table, J, BLOCK_N)
    true_rank = tl.load(rank + target * slots + slot)
    if true_rank == 0:
        return
    column, width = column_and_width(table, target, J, ALIGN)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    in_width = n < width
    first = tl.load(start + slot)
    its_bank = bank + tl.multiple_of(tl.load(table + target), ALIGN)
    acc = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for r0 in range(0, true_rank, BLOCK_R):
        r = r0 + tl.arange(0, BLOCK_R)
        in_rank = r < true_rank
        h_tile = tl.load(h + t * h_stride + target * page_rank + r, mask=in_rank, other=0.0)
        bank_tile = tl.load(
            its_bank + (first + r)[:, None] * bank_stride + n[None, :],
            mask=in_rank[:, None] & in_width[None, :],
            other=0.0,
        ).to(tl.float32)
        acc += tl.sum(h_tile[:, None] * bank_tile, axis=0)
    acc *= tl.load(scale + target * slots + slot)
    here = y + t * y_stride + column + n
    before = tl.load(here, mask=in_width, other=0.0)
    # Where nothing is added the bits stay: −0.0 + 0.0 would be +0.0. A mask of single numbers would forbid wide stores.
    tl.store(here, tl.where(acc != 0.0, (before.to(tl.float32) + acc).to(before.dtype), before), mask=in_width)


def add_update(y: Tensor, x: Tensor, factors: Factors, segments: Segments) -> None:
    """Add the update to ``y [T, ΣO]`` in place; ``h [T, J · P]`` stays in fp32 and y is rounded once."""
    h = torch.empty((segments.tokens, factors.targets * segments.rank), dtype=torch.float32, device=x.device)
    side, launch = Side.of_a(factors), gathered_shrink_launch(segments, factors.targets)
    gathered_shrink_kernel[launch.grid](
        *(x, side.bank, h, side.table),
        *(segments.slots, factors.start, factors.rank, factors.slots),
        *(segments.rank, x.stride(0), side.bank.stride(0), h.stride(0)),
        ALIGN=side.align,
        **launch.arguments,
    )
    side = Side.of_b(factors)
    launch = gathered_expand_launch(segments, side.widths)
    gathered_expand_kernel[launch.grid](
        *(y, side.bank, h, side.table),
        *(segments.slots, factors.start, factors.rank, factors.scale, factors.slots),
        *(segments.rank, y.stride(0), side.bank.stride(0), h.stride(0)),
        ALIGN=side.align,
        **launch.arguments,
    )
