"""The factors of linear layers that share an input, as the kernels read them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Factors:
    """The factors of the J linears that share one input, for every slot of a bank of rank-rows.

    Slot s adds ``scale[j, s] · (x aₛᵀ) bₛ`` to the output of linear j, with ``aₛ = a[j][start[s] : start[s] +
    rank[j, s]]`` and ``bₛ`` the same rows of ``b[j]``. No other row is read. The outputs of the J linears lie side by
    side: linear j has ``y[:, columns[j] : columns[j + 1]]``. The same shape, in fp32, describes where the gradients of
    these factors go.

    >>> bank = torch.zeros(4, 20)
    >>> start, rank, scale = torch.tensor([0]), torch.tensor([[4], [4]], dtype=torch.int32), torch.ones(2, 1)
    >>> factors = Factors((bank[:, :5], bank[:, 10:15]), (bank[:, 5:10], bank[:, 15:18]), start, rank, scale)
    >>> factors.targets, factors.in_features, factors.out_features, factors.columns
    (2, 5, (5, 3), (0, 5, 8))
    """

    a: tuple[Tensor, ...]
    """J × ``[N, H]``: column views of one bank ``[N, W]``; rows lie apart, the numbers of one row side by side."""
    b: tuple[Tensor, ...]
    """J × ``[N, O_j]``: row r of B_jᵀ, views of the same bank."""
    start: Tensor
    """``[S]`` int64: the first rank-row of the slot, the same for all J."""
    rank: Tensor
    """``[J, S]`` int32: the slot's true rank at that linear; 0 where the slot leaves it alone."""
    scale: Tensor
    """``[J, S]`` fp32."""
    # Every call of an op asks for the following, hundreds of times a second: they are written down, not computed.
    slots: int = field(init=False, repr=False)
    """S, the number of slots of the bank."""
    targets: int = field(init=False, repr=False)
    """J, the number of linears that share the input."""
    in_features: int = field(init=False, repr=False)
    """H, the width of the input."""
    out_features: tuple[int, ...] = field(init=False, repr=False)
    """O_j, the width of each target's output."""
    columns: tuple[int, ...] = field(init=False, repr=False)
    """The J + 1 offsets 0, O_0, O_0 + O_1, … of the targets' outputs in y."""
    dtype: torch.dtype = field(init=False, repr=False)
    """The precision of the bank."""
    device: torch.device = field(init=False, repr=False)
    """The device of the bank."""

    def __post_init__(self) -> None:
        banks = (*self.a, *self.b)
        if not self.a or len(self.a) != len(self.b):
            raise ValueError(
                f"Factors need one a and one b for each target; there are {len(self.a)} and {len(self.b)}."
            )
        shapes = [list(bank.shape) for bank in banks]
        if any(bank.ndim != 2 for bank in banks) or len({shape[0] for shape in shapes}) != 1:
            raise ValueError(f"Factors need a [N, H] and b [N, O] over the same N rank-rows; they are {shapes}.")
        if len({shape[1] for shape in shapes[: len(self.a)]}) != 1:
            raise ValueError(f"Targets that share an input have a [N, H] of one H; they are {shapes[: len(self.a)]}.")
        for what, found in (("precision", {bank.dtype for bank in banks}), ("device", {bank.device for bank in banks})):
            if len(found) != 1:
                raise ValueError(f"Factors need a and b of one {what}; they are {', '.join(sorted(map(str, found)))}.")
        strides = {bank.stride() for bank in banks}
        if len(strides) != 1 or self.a[0].stride(1) != 1:
            raise ValueError(
                f"The numbers of one rank-row must lie side by side (last stride 1) in rows of one bank; the strides "
                f"are {sorted(strides)}. Pass column slices of one row-major bank."
            )
        out_features = tuple(b.shape[1] for b in self.b)
        written: dict[str, object] = {
            "slots": self.start.numel(),
            "targets": len(self.a),
            "in_features": self.a[0].shape[1],
            "out_features": out_features,
            "columns": tuple(accumulate(out_features, initial=0)),
            "dtype": self.a[0].dtype,
            "device": self.a[0].device,
        }
        for name, value in written.items():
            object.__setattr__(self, name, value)
        self._check_tables()

    def _check_tables(self) -> None:
        per_slot, per_target = (self.slots,), (self.targets, self.slots)
        tables = (
            ("start", self.start, per_slot, torch.int64),
            ("rank", self.rank, per_target, torch.int32),
            ("scale", self.scale, per_target, torch.float32),
        )
        for name, table, shape, dtype in tables:
            if tuple(table.shape) != shape or table.dtype != dtype or not table.is_contiguous():
                raise ValueError(
                    f"{name} must be {list(shape)} {dtype} without gaps; it is {list(table.shape)} {table.dtype} with "
                    f"strides {table.stride()}."
                )
