"""The rows of one batch sorted by adapter: made once for a forward, shared by every layer and by the backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


# Without slots: `owner` and `keep` are kept once computed, and only the plain torch path asks for them.
@dataclass(frozen=True, eq=False)
class Segments:
    """Which rows use which rank-rows, in the forms that the backends read.

    A row takes part when its slot is not −1 and the slot's page has a rank above 0; T' rows do. The tables are copies:
    a slot that is loaded or freed later does not change them.
    """

    slots: Tensor
    """``[T]`` int32: the slot of every row; −1 where the row takes no part."""
    order: Tensor
    """``[T']`` int32: the rows that take part, sorted by slot and in the batch's order within a slot."""
    chunk_slot: Tensor
    """``[C]`` int32: the slot of each chunk of at most `chunk_rows` positions of `order`."""
    chunk_start: Tensor
    """``[C]`` int32: the first position of the chunk."""
    chunk_len: Tensor
    """``[C]`` int32: the positions of the chunk."""
    active: Tensor
    """``[A]`` int32: the slots that have rows, ascending."""
    active_bounds: Tensor
    """``[A + 1]`` int32: ``active[i]`` has the positions ``active_bounds[i] : active_bounds[i + 1]`` of `order`."""
    rows: Tensor
    """``[R]`` int64: the rank-rows of the active slots, in the bank's order."""
    row_slot: Tensor
    """``[R]`` int64: the slot of each of these rank-rows."""
    row_index: Tensor
    """``[R]`` int64: the number of the rank-row inside its slot."""
    row_span: slice | None
    """The range that `rows` covers in the bank, where it is one range."""
    adapted: slice | Tensor
    """The rows that take part, ascending: a range, or ``[T']`` int64."""
    bank_slots: int
    """S, the number of slots of the bank."""
    chunk_rows: int
    rank: int
    """The largest page rank among the active slots; 0 when no row takes part."""
    _keep: dict[tuple[torch.dtype, int], Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, slots: Tensor | Sequence[int], starts: Tensor, ranks: Tensor, *, chunk_rows: int = 64) -> Segments:
        """Sort a batch's rows by slot.

        ``slots [T]`` holds −1 for "no adapter"; ``starts [S]`` is each slot's first rank-row, ``ranks [S]`` its page
        rank (the largest over its layers). The tables lie on the device of ``starts``; they are computed on the host,
        so on a GPU this call waits for the three tensors. Raises `ValueError` for a slot outside −1 … S − 1.

        >>> segments = Segments.of([1, -1, 0, 1], torch.tensor([0, 8]), torch.tensor([8, 4]))
        >>> segments.order.tolist(), segments.chunk_slot.tolist(), segments.chunk_len.tolist()
        ([2, 0, 3], [0, 1], [1, 2])
        """
        if chunk_rows < 16 or chunk_rows & (chunk_rows - 1):
            raise ValueError(f"chunk_rows is {chunk_rows}; it must be a power of two of at least 16.")
        if starts.ndim != 1 or starts.shape != ranks.shape:
            raise ValueError(
                f"starts and ranks need one number for each slot [S]; they are {list(starts.shape)} and "
                f"{list(ranks.shape)}."
            )
        device = starts.device
        asked = torch.as_tensor(slots, dtype=torch.int64).reshape(-1).cpu()
        starts, ranks = starts.to("cpu", torch.int64), ranks.to("cpu", torch.int64)
        _check_slots(asked, starts.numel())
        taking_part = (asked >= 0) & (_page_ranks(asked, ranks) > 0)
        adapted = taking_part.nonzero().flatten()
        by_slot, position = asked[adapted].sort(stable=True)
        active, counts = torch.unique_consecutive(by_slot, return_counts=True)
        ends = counts.cumsum(0)
        chunk_slot, chunk_start, chunk_len = _chunks(active, ends - counts, counts, chunk_rows)
        rows, row_slot, row_index = _rank_rows(active, starts, ranks)

        def table(values: Tensor, dtype: torch.dtype = torch.int32) -> Tensor:
            return values.to(device, dtype)

        return cls(
            slots=table(torch.where(taking_part, asked, -1)),
            order=table(adapted[position]),
            chunk_slot=table(chunk_slot),
            chunk_start=table(chunk_start),
            chunk_len=table(chunk_len),
            active=table(active),
            active_bounds=table(torch.cat([ends.new_zeros(1), ends])),
            rows=table(rows, torch.int64),
            row_slot=table(row_slot, torch.int64),
            row_index=table(row_index, torch.int64),
            row_span=as_range(rows),
            adapted=as_range(adapted) or table(adapted, torch.int64),
            bank_slots=starts.numel(),
            chunk_rows=chunk_rows,
            rank=int(ranks[active].max()) if active.numel() else 0,
        )

    @property
    def empty(self) -> bool:
        """Whether no row takes part, so that every op returns ``y`` as it is."""
        return self.rank == 0

    @property
    def tokens(self) -> int:
        """T, the number of rows of the batch."""
        return self.slots.numel()

    @cached_property
    def only_slot(self) -> int | None:
        """The slot of all rows that take part, where there is just one."""
        return int(self.active[0]) if self.active.numel() == 1 else None

    @cached_property
    def owner(self) -> Tensor:
        """``[T', R]`` bool: whether the row (of `adapted`) may use the rank-row (of `rows`)."""
        return self.slots[self.adapted].unsqueeze(1) == self.row_slot

    def keep(self, dtype: torch.dtype, targets: int = 1) -> Tensor:
        """Return `owner` as integers as wide as ``dtype``, once for each target ``[T', targets · R]``.

        All bits are set where an entry counts, else none.
        """
        if (dtype, targets) not in self._keep:
            self._keep[dtype, targets] = (-self.owner.to(_INTEGERS[dtype.itemsize])).repeat(1, targets)
        return self._keep[dtype, targets]


def as_range(ascending: Tensor) -> slice | None:
    """Return the range that row numbers cover, or ``None`` when they are not one range in ascending order.

    >>> as_range(torch.tensor([3, 4, 5])), as_range(torch.tensor([3, 5]))
    (slice(3, 6, None), None)
    """
    if ascending.numel() == 0:
        return slice(0, 0)
    first = int(ascending[0])
    if int(ascending[-1]) - first + 1 != ascending.numel() or bool((ascending.diff() != 1).any()):
        return None
    return slice(first, first + ascending.numel())


def _check_slots(asked: Tensor, count: int) -> None:
    outside = asked[(asked < -1) | (asked >= count)]
    if outside.numel():
        raise ValueError(
            f"Row slots must lie in −1 … {count - 1} (−1 is no adapter); {sorted(set(outside.tolist()))} do not."
        )


def _page_ranks(asked: Tensor, ranks: Tensor) -> Tensor:
    return ranks[asked] if ranks.numel() else torch.zeros_like(asked)


def _chunks(active: Tensor, firsts: Tensor, counts: Tensor, chunk_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    per_slot = (counts + chunk_rows - 1) // chunk_rows
    which = torch.repeat_interleave(torch.arange(active.numel()), per_slot)
    number = torch.arange(which.numel()) - (per_slot.cumsum(0) - per_slot)[which]
    done = number * chunk_rows
    return active[which], firsts[which] + done, (counts[which] - done).clamp(max=chunk_rows)


def _rank_rows(active: Tensor, starts: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    in_bank_order = active[starts[active].argsort()]
    counts = ranks[in_bank_order]
    row_slot = torch.repeat_interleave(in_bank_order, counts)
    row_index = torch.arange(row_slot.numel()) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    return starts[row_slot] + row_index, row_slot, row_index
