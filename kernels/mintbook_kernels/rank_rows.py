"""The active rank-rows of one layer, as the plain torch path multiplies with them.

The path is masked dense: one product ``h = x Aᵀ [T', R]`` against every active rank-row, foreign entries set to 0, then
one product ``y += h Bᵀ``. The number of torch calls does not depend on the number of adapters. A foreign entry of h is
replaced, whatever it was, but its 0 still meets the foreign row of B: an adapter whose B holds inf or NaN makes NaN of
every adapted row of its batch (never of rows without an adapter). The Triton kernels read no foreign row at all.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mintbook_kernels.factors import Factors
from mintbook_kernels.segments import Segments


@dataclass(frozen=True, slots=True, eq=False)
class RankRows:
    """The rank-rows that one layer uses in one batch; those beyond a slot's true rank are left out, not masked."""

    a: Tensor
    """``[R, H]``."""
    b: Tensor
    """``[R, O]``."""
    slot: Tensor
    """``[R]``: the slot of each rank-row."""
    index: Tensor
    """``[R]``: its number inside the slot."""
    scale: Tensor | float
    """``[R]`` fp32, or one number for all."""
    keep: Tensor | None
    """``[T', R]`` integers as wide as h: all bits set where an entry counts, else none; ``None`` when all count."""

    @classmethod
    def of(cls, factors: Factors, segments: Segments) -> RankRows | None:
        """Return the rank-rows in use, or ``None`` when no active slot adapts this layer."""
        if segments.only_slot is not None:
            return cls._of_one(factors, segments, segments.only_slot)
        live = segments.row_index < factors.rank[segments.row_slot]
        slot, index, keep = segments.row_slot, segments.row_index, segments.keep(factors.a.dtype)
        if bool(live.all()):
            if segments.row_span is not None:
                a, b = factors.a[segments.row_span], factors.b[segments.row_span]
            else:
                a, b = factors.a.index_select(0, segments.rows), factors.b.index_select(0, segments.rows)
        else:
            chosen = live.nonzero().flatten()
            if chosen.numel() == 0:
                return None
            rows = segments.rows[chosen]
            a, b = factors.a.index_select(0, rows), factors.b.index_select(0, rows)
            slot, index, keep = slot[chosen], index[chosen], keep.index_select(1, chosen)
        return cls(a, b, slot, index, factors.scale[slot], keep)

    @classmethod
    def _of_one(cls, factors: Factors, segments: Segments, slot: int) -> RankRows | None:
        rank, start = int(factors.rank[slot]), int(factors.start[slot])
        if rank == 0:
            return None
        rows = slice(start, start + rank)
        scale = float(factors.scale[slot])
        return cls(factors.a[rows], factors.b[rows], segments.row_slot[:rank], segments.row_index[:rank], scale, None)

    def weigh(self, h: Tensor) -> Tensor:
        """Multiply ``h [T', R]`` by the scales and set foreign entries to exactly 0, in place."""
        h.mul_(self.scale)
        if self.keep is not None:
            # By bits, because 0 · NaN is NaN, and because masked_fill_ costs as much as the product before it.
            h.view(self.keep.dtype).bitwise_and_(self.keep)
        return h


def take(tensor: Tensor, segments: Segments) -> Tensor:
    """Return the rows that take part ``[T', …]``: a view where they are one range, else a copy."""
    if isinstance(segments.adapted, slice):
        return tensor[segments.adapted]
    return tensor.index_select(0, segments.adapted)
