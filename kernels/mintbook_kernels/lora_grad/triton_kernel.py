# Triton's decorators and kernel arguments carry no types.
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-incomplete-defs=False
"""The gradients in Triton: dh and dx by the kernels of grouped rows, dA and dBᵀ by one kernel without atomics."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mintbook_kernels.factors import Factors
from mintbook_kernels.grouped_lora.triton_kernel import expand, new_h, shrink
from mintbook_kernels.segments import Segments
from mintbook_kernels.tiles import GROUPED, blocks, tile_for


@triton.jit
def factor_grad_kernel(
    h,
    x,
    g,
    order,
    active,
    active_bounds,
    rank,
    scale,
    grad_start,
    grad_rank,
    width,
    h_stride,
    x_stride,
    g_stride,
    SCALED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """g[grad_start + r, n] += s · Σ_p h[p, r] · x[order[p], n] over the rows p of one slot; s is 1 unless SCALED.

    One program owns one tile of g and sums its slot's rows in the batch's order: no atomics, one order of addition.
    """
    slot = tl.load(active + tl.program_id(0))
    trained = tl.minimum(tl.load(rank + slot), tl.load(grad_rank + slot)).to(tl.int32)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    if tl.program_id(1) * BLOCK_R >= trained:
        return
    n = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_rank = r < trained
    in_width = n < width
    end = tl.load(active_bounds + tl.program_id(0) + 1)
    acc = tl.zeros((BLOCK_R, BLOCK_N), dtype=tl.float32)
    for p0 in range(tl.load(active_bounds + tl.program_id(0)), end, BLOCK_M):
        position = (p0 + tl.arange(0, BLOCK_M)).to(tl.int64)
        in_slot = position < end
        row = tl.load(order + position, mask=in_slot, other=0).to(tl.int64)
        h_tile = tl.load(
            h + position[None, :] * h_stride + r[:, None], mask=in_slot[None, :] & in_rank[:, None], other=0.0
        )
        x_tile = tl.load(x + row[:, None] * x_stride + n[None, :], mask=in_slot[:, None] & in_width[None, :], other=0.0)
        acc = tl.dot(h_tile.to(x_tile.dtype), x_tile, acc, input_precision="ieee")
    if SCALED:
        acc *= tl.load(scale + slot)
    here = g + (tl.load(grad_start + slot).to(tl.int64) + r)[:, None] * g_stride + n[None, :]
    inside = in_rank[:, None] & in_width[None, :]
    tl.store(here, tl.load(here, mask=inside, other=0.0) + acc, mask=inside)


def _add_factor_grad(
    h: Tensor, x: Tensor, g: Tensor, factors: Factors, segments: Segments, grads: Factors, *, scaled: bool
) -> None:
    tile = tile_for(GROUPED[x.dtype.itemsize], segments.rank)
    factor_grad_kernel[(segments.active.numel(), blocks(segments.rank, tile.rank), blocks(x.shape[1], tile.columns))](
        h,
        x,
        g,
        *(segments.order, segments.active, segments.active_bounds),
        *(factors.rank, factors.scale, grads.start, grads.rank),
        *(x.shape[1], h.stride(0), x.stride(0), g.stride(0)),
        SCALED=scaled,
        BLOCK_M=segments.chunk_rows,
        BLOCK_R=tile.rank,
        BLOCK_N=tile.columns,
        **tile.options,
    )


def add_gradients(
    dy: Tensor,
    x: Tensor,
    h: Tensor | None,
    factors: Factors,
    segments: Segments,
    grads: Factors | None,
    *,
    need_dx: bool,
) -> Tensor | None:
    """Add dA and dBᵀ to ``grads`` in place; return ``dx [T, H]`` where it is needed.

    ``h`` is what `add_update` of grouped rows returned, or ``None`` to compute it again. Sums are in fp32; h and dh are
    rounded to the precision of x where they enter a product.
    """
    dh = new_h(segments, x.device)
    shrink(dy, factors.b, dh, factors, segments, scaled=True)
    if grads is not None:
        if h is None:
            h = new_h(segments, x.device)
            shrink(x, factors.a, h, factors, segments, scaled=False)
        _add_factor_grad(dh, x, grads.a, factors, segments, grads, scaled=False)
        _add_factor_grad(h, dy, grads.b, factors, segments, grads, scaled=True)
    if not need_dx:
        return None
    dx = torch.zeros_like(x)
    expand(dx, dh, factors.a, factors, segments, scaled=False)
    return dx
