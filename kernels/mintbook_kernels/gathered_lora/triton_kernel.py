# Triton's decorators and kernel arguments carry no types.
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-incomplete-defs=False
"""Gathered rows in Triton: every row reads its own adapter's factors; nothing is sorted and ``tl.dot`` is not used."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mintbook_kernels.factors import Factors
from mintbook_kernels.segments import Segments
from mintbook_kernels.tiles import GATHERED, blocks, tile_for


@triton.jit
def gathered_shrink_kernel(
    x,
    a,
    h,
    slots,
    start,
    rank,
    width,
    x_stride,
    a_stride,
    h_stride,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """h[t, r] = Σ_k x[t, k] · a[start + r, k] for one row and one block of ranks."""
    t = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + t)
    if slot < 0:
        return
    true_rank = tl.load(rank + slot).to(tl.int32)
    if tl.program_id(1) * BLOCK_R >= true_rank:
        return
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    in_rank = r < true_rank
    bank_row = tl.load(start + slot).to(tl.int64) + r
    acc = tl.zeros((BLOCK_R,), dtype=tl.float32)
    for k0 in range(0, width, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        in_width = k < width
        x_tile = tl.load(x + t * x_stride + k, mask=in_width, other=0.0).to(tl.float32)
        a_tile = tl.load(
            a + bank_row[:, None] * a_stride + k[None, :], mask=in_rank[:, None] & in_width[None, :], other=0.0
        ).to(tl.float32)
        acc += tl.sum(a_tile * x_tile[None, :], axis=1)
    tl.store(h + t * h_stride + r, acc, mask=in_rank)


@triton.jit
def gathered_expand_kernel(
    y,
    h,
    b,
    slots,
    start,
    rank,
    scale,
    width,
    y_stride,
    h_stride,
    b_stride,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """y[t, n] += s · Σ_r h[t, r] · b[start + r, n] for one row and one block of columns."""
    t = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + t)
    if slot < 0:
        return
    true_rank = tl.load(rank + slot).to(tl.int32)
    if true_rank == 0:
        return
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_width = n < width
    first = tl.load(start + slot).to(tl.int64)
    acc = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for r0 in range(0, true_rank, BLOCK_R):
        r = r0 + tl.arange(0, BLOCK_R)
        in_rank = r < true_rank
        h_tile = tl.load(h + t * h_stride + r, mask=in_rank, other=0.0)
        b_tile = tl.load(
            b + (first + r)[:, None] * b_stride + n[None, :], mask=in_rank[:, None] & in_width[None, :], other=0.0
        ).to(tl.float32)
        acc += tl.sum(h_tile[:, None] * b_tile, axis=0)
    acc *= tl.load(scale + slot)
    here = y + t * y_stride + n
    # Where nothing is added nothing is written: −0.0 + 0.0 would be +0.0, another bit pattern.
    changed = in_width & (acc != 0.0)
    before = tl.load(here, mask=changed, other=0.0)
    tl.store(here, (before.to(tl.float32) + acc).to(before.dtype), mask=changed)


def add_update(y: Tensor, x: Tensor, factors: Factors, segments: Segments) -> None:
    """Add the update to ``y [T, O]`` in place; ``h [T, P]`` stays in fp32 and y is rounded once."""
    tile = tile_for(GATHERED, segments.rank)
    h = torch.empty((segments.tokens, segments.rank), dtype=torch.float32, device=x.device)
    gathered_shrink_kernel[(segments.tokens, blocks(segments.rank, tile.rank))](
        x,
        factors.a,
        h,
        *(segments.slots, factors.start, factors.rank),
        *(x.shape[1], x.stride(0), factors.a.stride(0), h.stride(0)),
        BLOCK_R=tile.rank,
        BLOCK_K=tile.columns,
        **tile.options,
    )
    gathered_expand_kernel[(segments.tokens, blocks(y.shape[1], tile.columns))](
        y,
        h,
        factors.b,
        *(segments.slots, factors.start, factors.rank, factors.scale),
        *(y.shape[1], y.stride(0), h.stride(0), factors.b.stride(0)),
        BLOCK_R=tile.rank,
        BLOCK_N=tile.columns,
        **tile.options,
    )
