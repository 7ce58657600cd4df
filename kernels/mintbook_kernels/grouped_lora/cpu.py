"""Grouped rows in plain torch."""

from __future__ import annotations

from torch import Tensor

from mintbook_kernels.factors import Factors
from mintbook_kernels.rank_rows import RankRows, take
from mintbook_kernels.segments import Segments


def add_update(y: Tensor, x: Tensor, factors: Factors, segments: Segments) -> Tensor | None:
    """Add the update to ``y [T, O]`` in place; return the scaled ``h [T', R]``, or ``None`` when the layer has none.

    Products accumulate in fp32; ``h`` is rounded to the precision of x twice, when it is formed and when it is scaled;
    y is rounded once. Rows without an adapter are not written.
    """
    rows = RankRows.of(factors, segments)
    if rows is None:
        return None
    h = rows.weigh(take(x, segments) @ rows.a.T)
    target = take(y, segments).addmm_(h, rows.b)
    if not isinstance(segments.adapted, slice):
        y.index_copy_(0, segments.adapted, target)
    return h
