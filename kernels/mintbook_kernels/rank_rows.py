"""The active rank-rows of targets that share an input, as the plain torch path multiplies with them.

The path is masked dense: one product ``h = x Aᵀ [T', R]`` against every active rank-row of every target, foreign
entries set to 0, then one product ``y_j += h_j B_jᵀ`` for each target. The number of torch calls does not depend on the
number of adapters. A foreign entry of h is replaced, whatever it was, but its 0 still meets the foreign row of B: an
adapter whose B holds inf or NaN makes NaN of every adapted row of its batch (never of rows without an adapter). The
Triton kernels read no foreign row at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from mintbook_kernels.factors import Factors
from mintbook_kernels.segments import Segments


@dataclass(frozen=True, slots=True, eq=False)
class RankRows:
    """The rank-rows that J targets use in one batch; those beyond a slot's true rank are left out, not masked."""

    a: Tensor
    """``[R, H]``: the rows of the first target, then those of the next; R is ΣR_j."""
    b: tuple[Tensor, ...]
    """J × ``[R_j, O_j]``."""
    chosen: tuple[slice | Tensor, ...]
    """J × ``[R_j]``: which of the batch's rank-rows (`Segments.rows`) each target uses, ascending."""
    parts: tuple[slice, ...]
    """J × the range of R that belongs to the target."""
    scale: Tensor | float
    """``[R]`` fp32, or one number for all."""
    keep: Tensor | None
    """``[T', R]`` integers as wide as h: all bits set where an entry counts, else none; ``None`` when all count."""

    @classmethod
    def of(cls, factors: Factors, segments: Segments) -> RankRows | None:
        """Return the rank-rows in use, or ``None`` when no active slot adapts any of the targets."""
        chosen = _chosen(factors, segments)
        counts = [one.stop if isinstance(one, slice) else one.numel() for one in chosen]
        ends = tuple(accumulate(counts, initial=0))
        if ends[-1] == 0:
            return None
        parts = tuple(slice(*ends_of_one) for ends_of_one in pairwise(ends))
        rows = [_bank_rows(one, segments) for one in chosen]
        return cls(
            a=_stacked(factors.a, rows, parts),
            b=tuple(
                b[one] if isinstance(one, slice) else b.index_select(0, one)
                for b, one in zip(factors.b, rows, strict=True)
            ),
            chosen=tuple(chosen),
            parts=parts,
            scale=_scale(factors, segments, chosen),
            keep=_keep(factors, segments, chosen),
        )

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


def _chosen(factors: Factors, segments: Segments) -> list[slice | Tensor]:
    if segments.only_slot is not None:
        return [slice(0, rank) for rank in factors.rank[:, segments.only_slot].tolist()]
    live = segments.row_index < factors.rank[:, segments.row_slot]
    if bool(live.all()):
        return [slice(0, live.shape[1])] * factors.targets
    return [one.nonzero().flatten() for one in live]


def _bank_rows(chosen: slice | Tensor, segments: Segments) -> slice | Tensor:
    span = segments.row_span
    if isinstance(chosen, slice) and span is not None:
        return slice(span.start + chosen.start, span.start + chosen.stop)
    return segments.rows[chosen]


def _stacked(banks: tuple[Tensor, ...], rows: list[slice | Tensor], parts: tuple[slice, ...]) -> Tensor:
    if len(banks) == 1 and isinstance(rows[0], slice):
        return banks[0][rows[0]]
    out = banks[0].new_empty((parts[-1].stop, banks[0].shape[1]))
    for bank, one, part in zip(banks, rows, parts, strict=True):
        if isinstance(one, slice):
            out[part] = bank[one]
        else:
            torch.index_select(bank, 0, one, out=out[part])
    return out


def _scale(factors: Factors, segments: Segments, chosen: list[slice | Tensor]) -> Tensor | float:
    if segments.only_slot is not None:
        scales = factors.scale[:, segments.only_slot]
        first, *others = map(float, scales.tolist())
        if all(other == first for other in others):
            return first
    return torch.cat([scale[segments.row_slot[one]] for scale, one in zip(factors.scale, chosen, strict=True)])


def _keep(factors: Factors, segments: Segments, chosen: list[slice | Tensor]) -> Tensor | None:
    if segments.only_slot is not None:
        return None
    columns = [one for one in chosen if not isinstance(one, slice)]
    if not columns:
        return segments.keep(factors.dtype, factors.targets)
    return segments.keep(factors.dtype).index_select(1, torch.cat(columns))
