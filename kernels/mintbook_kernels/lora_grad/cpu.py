"""The gradients in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from mintbook_kernels.factors import Factors
from mintbook_kernels.rank_rows import RankRows, take
from mintbook_kernels.segments import Segments, as_range


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
    """Add dA and dBᵀ to ``grads`` in place; return ``dx [T, H]`` where it is needed and the layer has an update.

    ``h`` is what `add_update` of grouped rows returned, or ``None`` to compute it again. Every product accumulates in
    fp32 and is rounded to the precision of x before it is added to the fp32 bank.
    """
    rows = RankRows.of(factors, segments)
    if rows is None:
        return None
    dy_taken, x_taken = take(dy, segments), take(x, segments)
    dh = rows.weigh(dy_taken @ rows.b.T)
    if grads is not None:
        h = rows.weigh(x_taken @ rows.a.T) if h is None else h
        _accumulate(grads, rows, dh, h, x_taken, dy_taken)
    if not need_dx:
        return None
    dx_taken = dh @ rows.a
    if dx_taken.shape[0] == segments.tokens:
        return dx_taken
    dx = torch.zeros_like(x)
    dx[segments.adapted] = dx_taken
    return dx


def _accumulate(grads: Factors, rows: RankRows, dh: Tensor, h: Tensor, x: Tensor, dy: Tensor) -> None:
    slot, index = rows.slot, rows.index
    trained = index < grads.rank[slot]
    if not bool(trained.all()):
        chosen = trained.nonzero().flatten()
        if chosen.numel() == 0:
            return
        slot, index, dh, h = slot[chosen], index[chosen], dh.index_select(1, chosen), h.index_select(1, chosen)
    target = grads.start[slot] + index
    span = as_range(target)
    for bank, gradient in ((grads.a, dh.T @ x), (grads.b, h.T @ dy)):
        if span is not None:
            bank[span].add_(gradient)
        else:
            bank.index_add_(0, target, gradient.to(bank.dtype))
