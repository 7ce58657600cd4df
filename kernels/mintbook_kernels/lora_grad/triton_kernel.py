# Triton's decorators and kernel arguments carry no types.
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-incomplete-defs=False
"""The gradients in Triton, in four launches without atomics: dh, dA, dBᵀ and dx, each for all targets.

``dh [T', J · P]`` is fp32 and lies as h does. dh and dBᵀ read dy once each (see LOG.md for why not once together).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mintbook_kernels.factors import Factors
from mintbook_kernels.grouped_lora.triton_kernel import new_h, shrink
from mintbook_kernels.lanes import Side, column_and_width, lanes_of, target_of_lane, target_of_tile
from mintbook_kernels.launches import factor_grad_launch, input_grad_launch
from mintbook_kernels.segments import Segments


@triton.jit
def factor_grad_kernel(
    x,
    bank,
    h,
    table,
    order,
    active,
    active_bounds,
    start,
    rank,
    cap,
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
    BLOCK_N: tl.constexpr,
):
    """bank_j[start + r, n] += Σ_p h_j[p, r] · x_j[order[p], n] over the rows p of one slot, for r < min(rank, cap).

    SHARED is that of `shrink_kernel`: unless every target has the same x, the sum is multiplied by the target's scale.
    One program owns one tile of the bank and sums its slot's rows in the batch's order: no atomics, one order.
    """
    slot = tl.load(active + tl.program_id(0))
    its_target, tile = target_of_tile(tl.program_id(2), table, 1 if SHARED else J, BLOCK_N)
    total = lanes_of(its_target, slot, slots, rank, cap, SHARED, J)
    if tl.program_id(1) * BLOCK_R >= total:
        return
    lane = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    in_rank = lane < total
    target, r = target_of_lane(lane, its_target, slot, slots, rank, cap, SHARED, J)
    column, width = column_and_width(table, its_target, J, ALIGN)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    in_width = n < width
    h_column = target * page_rank + r
    end = tl.load(active_bounds + tl.program_id(0) + 1)
    acc = tl.zeros((BLOCK_R, BLOCK_N), dtype=tl.float32)
    for p0 in range(tl.load(active_bounds + tl.program_id(0)), end, BLOCK_M):
        position = (p0 + tl.arange(0, BLOCK_M)).to(tl.int64)
        in_slot = position < end
        row = tl.load(order + position, mask=in_slot, other=0).to(tl.int64)
        h_tile = tl.load(
            h + position[None, :] * h_stride + h_column[:, None], mask=in_slot[None, :] & in_rank[:, None], other=0.0
        )
        x_tile = tl.load(
            x + row[:, None] * x_stride + column + n[None, :], mask=in_slot[:, None] & in_width[None, :], other=0.0
        )
        acc = tl.dot(h_tile.to(x_tile.dtype), x_tile, acc, input_precision="ieee")
    if not SHARED:
        acc *= tl.load(scale + its_target * slots + slot)
    bank_row = tl.multiple_of(tl.load(table + target), [ALIGN]) + (tl.load(start + slot) + r) * bank_stride
    here = bank + bank_row[:, None] + n[None, :]
    inside = in_rank[:, None] & in_width[None, :]
    tl.store(here, tl.load(here, mask=inside, other=0.0) + acc, mask=inside)


@triton.jit
def input_grad_kernel(
    dx,
    bank,
    dh,
    table,
    order,
    chunk_slot,
    chunk_start,
    chunk_len,
    start,
    rank,
    slots,
    page_rank,
    x_stride,
    bank_stride,
    h_stride,
    J: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """dx[order[p], n] = Σ_j Σ_r dh_j[p, r] · bank_j[start + r, n] for one chunk and one block of columns."""
    chunk = tl.program_id(0)
    slot = tl.load(chunk_slot + chunk)
    total = lanes_of(0, slot, slots, rank, rank, True, J)
    _, width = column_and_width(table, 0, J, ALIGN)
    m = tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_chunk = m < tl.load(chunk_len + chunk)
    in_width = n < width
    position = (tl.load(chunk_start + chunk) + m).to(tl.int64)
    row = tl.load(order + position, mask=in_chunk, other=0).to(tl.int64)
    first = tl.load(start + slot)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for lane0 in range(0, total, BLOCK_R):
        lane = lane0 + tl.arange(0, BLOCK_R)
        in_rank = lane < total
        target, r = target_of_lane(lane, 0, slot, slots, rank, rank, True, J)
        bank_row = tl.multiple_of(tl.load(table + target), [ALIGN]) + (first + r) * bank_stride
        dh_tile = tl.load(
            dh + position[:, None] * h_stride + (target * page_rank + r)[None, :],
            mask=in_chunk[:, None] & in_rank[None, :],
            other=0.0,
        )
        bank_tile = tl.load(bank + bank_row[:, None] + n[None, :], mask=in_rank[:, None] & in_width[None, :], other=0.0)
        acc = tl.dot(dh_tile.to(bank_tile.dtype), bank_tile, acc, input_precision="ieee")
    here = dx + row[:, None] * x_stride + n[None, :]
    tl.store(here, acc.to(dx.dtype.element_ty), mask=in_chunk[:, None] & in_width[None, :])


def _add_factor_grad(
    h: Tensor, x: Tensor, side: Side, factors: Factors, segments: Segments, grads: Factors, *, shared: bool
) -> None:
    widths = side.widths[:1] if shared else side.widths
    launch = factor_grad_launch(segments, x.dtype.itemsize, factors.targets, widths, shared=shared)
    factor_grad_kernel[launch.grid](
        *(x, side.bank, h, side.table),
        *(segments.order, segments.active, segments.active_bounds),
        *(grads.start, factors.rank, grads.rank, factors.scale, factors.slots),
        *(segments.rank, x.stride(0), side.bank.stride(0), h.stride(0)),
        ALIGN=side.align,
        **launch.arguments,
    )


def _input_grad(dh: Tensor, x: Tensor, factors: Factors, segments: Segments) -> Tensor:
    side = Side.of_a(factors)
    launch = input_grad_launch(segments, x.dtype.itemsize, factors.targets, x.shape[1])
    every_row = segments.order.numel() == segments.tokens
    dx = torch.empty_like(x) if every_row else torch.zeros_like(x)
    input_grad_kernel[launch.grid](
        *(dx, side.bank, dh, side.table),
        *(segments.order, segments.chunk_slot, segments.chunk_start, segments.chunk_len),
        *(factors.start, factors.rank, factors.slots),
        *(segments.rank, dx.stride(0), side.bank.stride(0), dh.stride(0)),
        ALIGN=side.align,
        **launch.arguments,
    )
    return dx


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
    dh = new_h(factors, segments, x.device)
    shrink(dy, Side.of_b(factors), dh, factors, segments, shared=False)
    if grads is not None:
        if h is None:
            h = new_h(factors, segments, x.device)
            shrink(x, Side.of_a(factors), h, factors, segments, shared=True)
        _add_factor_grad(dh, x, Side.of_a(grads), factors, segments, grads, shared=True)
        _add_factor_grad(h, dy, Side.of_b(grads), factors, segments, grads, shared=False)
    return _input_grad(dh, x, factors, segments) if need_dx else None
