"""The gradients in plain torch."""

from __future__ import annotations

from itertools import pairwise

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
    """Add dA and dBᵀ to ``grads`` in place; return ``dx [T, H]`` where it is needed and there is an update.

    ``h`` is what `add_update` of grouped rows returned, or ``None`` to compute it again. Every product accumulates in
    fp32 and is rounded to the precision of x before it is added to the fp32 bank.
    """
    rows = RankRows.of(factors, segments)
    if rows is None:
        return None
    dy_taken, x_taken = take(dy, segments), take(x, segments)
    dh = torch.empty((dy_taken.shape[0], rows.a.shape[0]), dtype=dy.dtype, device=dy.device)
    for b, part, (first, end) in zip(rows.b, rows.parts, pairwise(factors.columns), strict=True):
        torch.mm(dy_taken[:, first:end], b.T, out=dh[:, part])
    rows.weigh(dh)
    if grads is not None:
        h = rows.weigh(x_taken @ rows.a.T) if h is None else h
        _accumulate(grads, rows, segments, dh, h, x_taken, dy_taken)
    if not need_dx:
        return None
    dx_taken = dh @ rows.a
    if dx_taken.shape[0] == segments.tokens:
        return dx_taken
    dx = torch.zeros_like(x)
    dx[segments.adapted] = dx_taken
    return dx


def _accumulate(
    grads: Factors, rows: RankRows, segments: Segments, dh: Tensor, h: Tensor, x: Tensor, dy: Tensor
) -> None:
    targets, trained = [], []
    for rank, chosen, part in zip(grads.rank, rows.chosen, rows.parts, strict=True):
        slot, index = segments.row_slot[chosen], segments.row_index[chosen]
        which = (index < rank[slot]).nonzero().flatten()
        targets.append((grads.start[slot] + index)[which])
        trained.append(which + part.start)
    picked = torch.cat(trained)
    if picked.numel() == 0:
        return
    if picked.numel() < dh.shape[1]:
        dh, h = dh.index_select(1, picked), h.index_select(1, picked)
    da, done = dh.T @ x, 0
    for j, (target, (first, end)) in enumerate(zip(targets, pairwise(grads.columns), strict=True)):
        part = slice(done, done + target.numel())
        if target.numel():
            _add_rows(grads.a[j], target, da[part])
            _add_rows(grads.b[j], target, h[:, part].T @ dy[:, first:end])
        done = part.stop


def _add_rows(bank: Tensor, rows: Tensor, gradient: Tensor) -> None:
    span = as_range(rows)
    if span is not None:
        bank[span].add_(gradient)
    else:
        bank.index_add_(0, rows, gradient.to(bank.dtype))
