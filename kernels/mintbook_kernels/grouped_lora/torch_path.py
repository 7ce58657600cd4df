"""Grouped rows in plain torch."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from mintbook_kernels.factors import Factors
from mintbook_kernels.rank_rows import RankRows, take
from mintbook_kernels.segments import Segments


def add_update(y: Tensor, x: Tensor, factors: Factors, segments: Segments) -> Tensor | None:
    """Add the update to ``y [T, ΣO]`` in place; return the scaled ``h [T', R]``, or ``None`` when there is none.

    Products accumulate in fp32; ``h`` is rounded to the precision of x twice, when it is formed and when it is scaled;
    y is rounded once. Rows without an adapter are not written.
    """
    rows = RankRows.of(factors, segments)
    if rows is None:
        return None
    h = rows.weigh(take(x, segments) @ rows.a.T)
    target = take(y, segments)
    for b, part, (first, end) in zip(rows.b, rows.parts, pairwise(factors.columns), strict=True):
        if part.start < part.stop:
            target[:, first:end].addmm_(h[:, part], b)
    if not isinstance(segments.adapted, slice):
        y.index_copy_(0, segments.adapted, target)
    return h
