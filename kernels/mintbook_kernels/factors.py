"""One linear layer's factors, as the kernels read them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """The factors of one linear layer for every slot of a bank of rank-rows.

    Slot s adds ``scale[s] · (x aₛᵀ) bₛ`` with ``aₛ = a[start[s] : start[s] + rank[s]]`` and ``bₛ`` the same rows of
    ``b``. No other row is read. The same shape, in fp32, describes where the gradients of these factors go.
    """

    a: Tensor
    """``[N, H]``; a view of a wider bank is expected: rows may lie apart, the numbers of one row may not."""
    b: Tensor
    """``[N, O]``: row r of Bᵀ, a view of the same kind."""
    start: Tensor
    """``[S]`` int32 or int64: the first rank-row of the slot."""
    rank: Tensor
    """``[S]`` int32 or int64: the slot's true rank at this layer; 0 where the slot leaves this layer alone."""
    scale: Tensor
    """``[S]`` fp32."""

    def __post_init__(self) -> None:
        if self.a.ndim != 2 or self.b.ndim != 2 or self.a.shape[0] != self.b.shape[0]:
            raise ValueError(
                f"Factors need a [N, H] and b [N, O] over the same N rank-rows; a is {list(self.a.shape)} and b is "
                f"{list(self.b.shape)}."
            )
        if self.a.dtype != self.b.dtype:
            raise ValueError(f"Factors need a and b of one precision; a is {self.a.dtype} and b is {self.b.dtype}.")
        if self.a.stride(1) != 1 or self.b.stride(1) != 1:
            raise ValueError(
                f"The numbers of one rank-row must lie side by side (last stride 1); the strides are {self.a.stride()} "
                f"and {self.b.stride()}. Pass column slices of a row-major bank."
            )
        if not self.start.shape == self.rank.shape == self.scale.shape == (self.slots,):
            raise ValueError(
                f"start, rank and scale need one number for each slot [S]; they are {list(self.start.shape)}, "
                f"{list(self.rank.shape)} and {list(self.scale.shape)}."
            )

    @property
    def slots(self) -> int:
        """S, the number of slots of the bank."""
        return self.start.numel()
