# Triton's decorators and kernel arguments carry no types.
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-incomplete-defs=False
"""Grouped rows in Triton: shrink and expand over chunks of rows that share a slot.

Both kernels read the slot's own start, rank and scale, so that a rank-4 adapter costs a rank-4 product beside one of
rank 256. ``h [T', P]`` is fp32, indexed by the position in `order`; its entries beyond a slot's rank are never written
or read. The gradients use the same two kernels, with B in A's place and the other way round.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mintbook_kernels.factors import Factors
from mintbook_kernels.segments import Segments
from mintbook_kernels.tiles import GROUPED, blocks, tile_for


@triton.jit
def shrink_kernel(
    x,
    a,
    h,
    order,
    chunk_slot,
    chunk_start,
    chunk_len,
    start,
    rank,
    scale,
    width,
    x_stride,
    a_stride,
    h_stride,
    SCALED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """h[p, r] = s · Σ_k x[order[p], k] · a[start + r, k] for one chunk and one block of ranks; s is 1 unless SCALED."""
    chunk = tl.program_id(0)
    slot = tl.load(chunk_slot + chunk)
    true_rank = tl.load(rank + slot).to(tl.int32)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    if tl.program_id(1) * BLOCK_R >= true_rank:
        return
    m = tl.arange(0, BLOCK_M)
    in_chunk = m < tl.load(chunk_len + chunk)
    in_rank = r < true_rank
    position = (tl.load(chunk_start + chunk) + m).to(tl.int64)
    row = tl.load(order + position, mask=in_chunk, other=0).to(tl.int64)
    bank_row = tl.load(start + slot).to(tl.int64) + r
    acc = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for k0 in range(0, width, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        in_width = k < width
        x_tile = tl.load(
            x + row[:, None] * x_stride + k[None, :], mask=in_chunk[:, None] & in_width[None, :], other=0.0
        )
        a_tile = tl.load(
            a + bank_row[None, :] * a_stride + k[:, None], mask=in_rank[None, :] & in_width[:, None], other=0.0
        )
        acc = tl.dot(x_tile, a_tile, acc, input_precision="ieee")
    if SCALED:
        acc *= tl.load(scale + slot)
    tl.store(h + position[:, None] * h_stride + r[None, :], acc, mask=in_chunk[:, None] & in_rank[None, :])


@triton.jit
def expand_kernel(
    y,
    h,
    b,
    order,
    chunk_slot,
    chunk_start,
    chunk_len,
    start,
    rank,
    scale,
    width,
    y_stride,
    h_stride,
    b_stride,
    SCALED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """y[order[p], n] += s · Σ_r h[p, r] · b[start + r, n] for one chunk, one block of columns; s is 1 unless SCALED."""
    chunk = tl.program_id(0)
    slot = tl.load(chunk_slot + chunk)
    true_rank = tl.load(rank + slot).to(tl.int32)
    if true_rank == 0:
        return
    m = tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_chunk = m < tl.load(chunk_len + chunk)
    in_width = n < width
    position = (tl.load(chunk_start + chunk) + m).to(tl.int64)
    row = tl.load(order + position, mask=in_chunk, other=0).to(tl.int64)
    first = tl.load(start + slot).to(tl.int64)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for r0 in range(0, true_rank, BLOCK_R):
        r = r0 + tl.arange(0, BLOCK_R)
        in_rank = r < true_rank
        h_tile = tl.load(
            h + position[:, None] * h_stride + r[None, :], mask=in_chunk[:, None] & in_rank[None, :], other=0.0
        )
        b_tile = tl.load(
            b + (first + r)[:, None] * b_stride + n[None, :], mask=in_rank[:, None] & in_width[None, :], other=0.0
        )
        acc = tl.dot(h_tile.to(b_tile.dtype), b_tile, acc, input_precision="ieee")
    if SCALED:
        acc *= tl.load(scale + slot)
    here = y + row[:, None] * y_stride + n[None, :]
    # Where nothing is added nothing is written: −0.0 + 0.0 would be +0.0, another bit pattern.
    changed = in_chunk[:, None] & in_width[None, :] & (acc != 0.0)
    before = tl.load(here, mask=changed, other=0.0)
    tl.store(here, (before.to(tl.float32) + acc).to(before.dtype), mask=changed)


def new_h(segments: Segments, device: torch.device) -> Tensor:
    """Return memory for ``h [T', P]`` fp32 with P at least the largest rank."""
    return torch.empty((segments.order.numel(), segments.rank), dtype=torch.float32, device=device)


def shrink(x: Tensor, a: Tensor, h: Tensor, factors: Factors, segments: Segments, *, scaled: bool) -> None:
    """Write ``h[p] = s · x[order[p]] aᵀ`` for ``x [T, W]`` and a bank ``a [N, W]``; s is 1 unless ``scaled``."""
    tile = tile_for(GROUPED[x.dtype.itemsize], segments.rank)
    shrink_kernel[(segments.chunk_slot.numel(), blocks(segments.rank, tile.rank))](
        x,
        a,
        h,
        *(segments.order, segments.chunk_slot, segments.chunk_start, segments.chunk_len),
        *(factors.start, factors.rank, factors.scale),
        *(x.shape[1], x.stride(0), a.stride(0), h.stride(0)),
        SCALED=scaled,
        BLOCK_M=segments.chunk_rows,
        BLOCK_R=tile.rank,
        BLOCK_K=tile.columns,
        **tile.options,
    )


def expand(y: Tensor, h: Tensor, b: Tensor, factors: Factors, segments: Segments, *, scaled: bool) -> None:
    """Add ``s · h[p] b`` to ``y[order[p]]`` for ``y [T, W]`` and a bank ``b [N, W]``; s is 1 unless ``scaled``."""
    tile = tile_for(GROUPED[y.dtype.itemsize], segments.rank)
    expand_kernel[(segments.chunk_slot.numel(), blocks(y.shape[1], tile.columns))](
        y,
        h,
        b,
        *(segments.order, segments.chunk_slot, segments.chunk_start, segments.chunk_len),
        *(factors.start, factors.rank, factors.scale),
        *(y.shape[1], y.stride(0), h.stride(0), b.stride(0)),
        SCALED=scaled,
        BLOCK_M=segments.chunk_rows,
        BLOCK_R=tile.rank,
        BLOCK_N=tile.columns,
        **tile.options,
    )


def add_update(y: Tensor, x: Tensor, factors: Factors, segments: Segments) -> Tensor:
    """Add the update to ``y [T, O]`` in place; return the unscaled ``h [T', P]`` in fp32.

    ``h`` is rounded to the precision of x once, where it meets B; y is rounded once.
    """
    h = new_h(segments, x.device)
    shrink(x, factors.a, h, factors, segments, scaled=False)
    expand(y, h, factors.b, factors, segments, scaled=True)
    return h
