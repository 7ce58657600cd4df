# Triton's decorators and kernel arguments carry no types.
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-incomplete-defs=False
"""Grouped rows in Triton: shrink and expand over chunks of rows that share a slot.

Both kernels read the slot's own start, rank and scale, so that a rank-4 adapter costs a rank-4 product beside one of
rank 256. ``h [T', J · P]`` is fp32, indexed by the position in `order`; target j has the columns from ``j · P``, and
what lies beyond a slot's rank is never written or read. The gradients shrink dy with the same kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mintbook_kernels.factors import Factors
from mintbook_kernels.lanes import Side, column_and_width, lanes_of, target_of_lane, target_of_tile
from mintbook_kernels.launches import expand_launch, shrink_launch
from mintbook_kernels.segments import Segments


@triton.jit
def shrink_kernel(
    x,
    bank,
    h,
    table,
    order,
    chunk_slot,
    chunk_start,
    chunk_len,
    start,
    rank,
    scale,
    slots,
    page_rank,
    x_stride,
    bank_stride,
    h_stride,
    SHARED: tl.constexpr,
    J: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """h_j[p, r] = Σ_k x_j[order[p], k] · bank_j[start + r, k] for one chunk and one block of rank-rows.

    SHARED: every target has the same x, and one block may hold rank-rows of several targets. Otherwise x_j are the
    target's own columns of x, a block belongs to one target, and the result is multiplied by its scale.
    """
    chunk = tl.program_id(0)
    slot = tl.load(chunk_slot + chunk)
    its_target = tl.program_id(2)
    total = lanes_of(its_target, slot, slots, rank, rank, SHARED, J)
    if tl.program_id(1) * BLOCK_R >= total:
        return
    lane = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    in_rank = lane < total
    target, r = target_of_lane(lane, its_target, slot, slots, rank, rank, SHARED, J)
    m = tl.arange(0, BLOCK_M)
    in_chunk = m < tl.load(chunk_len + chunk)
    position = (tl.load(chunk_start + chunk) + m).to(tl.int64)
    row = tl.load(order + position, mask=in_chunk, other=0).to(tl.int64)
    column, width = column_and_width(table, its_target, J, ALIGN)
    bank_row = tl.multiple_of(tl.load(table + target), [ALIGN]) + (tl.load(start + slot) + r) * bank_stride
    acc = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for k0 in range(0, width, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        in_width = k < width
        x_tile = tl.load(
            x + row[:, None] * x_stride + column + k[None, :], mask=in_chunk[:, None] & in_width[None, :], other=0.0
        )
        bank_tile = tl.load(bank + bank_row[None, :] + k[:, None], mask=in_rank[None, :] & in_width[:, None], other=0.0)
        acc = tl.dot(x_tile, bank_tile, acc, input_precision="ieee")
    if not SHARED:
        acc *= tl.load(scale + its_target * slots + slot)
    here = h + position[:, None] * h_stride + (target * page_rank + r)[None, :]
    tl.store(here, acc, mask=in_chunk[:, None] & in_rank[None, :])


@triton.jit
def expand_kernel(
    y,
    bank,
    h,
    table,
    order,
    chunk_slot,
    chunk_start,
    chunk_len,
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
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """y_j[order[p], n] += s_j · Σ_r h_j[p, r] · bank_j[start + r, n] for one chunk and one block of one target's n."""
    chunk = tl.program_id(0)
    slot = tl.load(chunk_slot + chunk)
    target, tile = target_of_tile(tl.program_id(1), table, J, BLOCK_N)
    true_rank = tl.load(rank + target * slots + slot)
    if true_rank == 0:
        return
    column, width = column_and_width(table, target, J, ALIGN)
    m = tl.arange(0, BLOCK_M)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    in_chunk = m < tl.load(chunk_len + chunk)
    in_width = n < width
    position = (tl.load(chunk_start + chunk) + m).to(tl.int64)
    row = tl.load(order + position, mask=in_chunk, other=0).to(tl.int64)
    first = tl.load(start + slot)
    its_bank = bank + tl.multiple_of(tl.load(table + target), ALIGN)
    its_h = h + target * page_rank
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for r0 in range(0, true_rank, BLOCK_R):
        r = r0 + tl.arange(0, BLOCK_R)
        in_rank = r < true_rank
        h_tile = tl.load(
            its_h + position[:, None] * h_stride + r[None, :], mask=in_chunk[:, None] & in_rank[None, :], other=0.0
        )
        bank_tile = tl.load(
            its_bank + (first + r)[:, None] * bank_stride + n[None, :],
            mask=in_rank[:, None] & in_width[None, :],
            other=0.0,
        )
        acc = tl.dot(h_tile.to(bank_tile.dtype), bank_tile, acc, input_precision="ieee")
    acc *= tl.load(scale + target * slots + slot)
    here = y + row[:, None] * y_stride + column + n[None, :]
    inside = in_chunk[:, None] & in_width[None, :]
    before = tl.load(here, mask=inside, other=0.0)
    # Where nothing is added the bits stay: −0.0 + 0.0 would be +0.0. A mask of single numbers would forbid wide stores.
    tl.store(here, tl.where(acc != 0.0, (before.to(tl.float32) + acc).to(before.dtype), before), mask=inside)


def new_h(factors: Factors, segments: Segments, device: torch.device) -> Tensor:
    """Return memory for ``h [T', J · P]`` fp32, where P is the largest page rank."""
    return torch.empty((segments.order.numel(), factors.targets * segments.rank), dtype=torch.float32, device=device)


def shrink(x: Tensor, side: Side, h: Tensor, factors: Factors, segments: Segments, *, shared: bool) -> None:
    """Write ``h_j[p] = x[order[p]] bank_jᵀ``; unless ``shared``, ``s_j · x_j[order[p]] bank_jᵀ``."""
    launch = shrink_launch(segments, x.dtype.itemsize, factors.targets, shared=shared)
    shrink_kernel[launch.grid](
        *(x, side.bank, h, side.table),
        *(segments.order, segments.chunk_slot, segments.chunk_start, segments.chunk_len),
        *(factors.start, factors.rank, factors.scale, factors.slots),
        *(segments.rank, x.stride(0), side.bank.stride(0), h.stride(0)),
        ALIGN=side.align,
        **launch.arguments,
    )


def expand(y: Tensor, side: Side, h: Tensor, factors: Factors, segments: Segments) -> None:
    """Add ``s_j · h_j[p] bank_j`` to ``y_j[order[p]]`` in place."""
    launch = expand_launch(segments, y.dtype.itemsize, side.widths)
    expand_kernel[launch.grid](
        *(y, side.bank, h, side.table),
        *(segments.order, segments.chunk_slot, segments.chunk_start, segments.chunk_len),
        *(factors.start, factors.rank, factors.scale, factors.slots),
        *(segments.rank, y.stride(0), side.bank.stride(0), h.stride(0)),
        ALIGN=side.align,
        **launch.arguments,
    )


def add_update(y: Tensor, x: Tensor, factors: Factors, segments: Segments) -> Tensor:
    """Add the update to ``y [T, ΣO]`` in place; return the unscaled ``h [T', J · P]`` in fp32.

    ``h`` is rounded to the precision of x once, where it meets B; y is rounded once.
    """
    h = new_h(factors, segments, x.device)
    shrink(x, Side.of_a(factors), h, factors, segments, shared=True)
    expand(y, Side.of_b(factors), h, factors, segments)
    return h
