"""The rows of one batch sorted by adapter: made once for a forward, shared by every layer and by the backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class _Host:
    """What the tables are made of, in int64 on the host."""

    adapted: Integers
    active: Integers
    bounds: Integers
    starts: Integers
    ranks: Integers


# Without slots: what only one backend asks for is made when it asks.
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
    active: Tensor
    """``[A]`` int32: the slots that have rows, ascending."""
    active_bounds: Tensor
    """``[A + 1]`` int32: ``active[i]`` has the positions ``active_bounds[i] : active_bounds[i + 1]`` of `order`."""
    bank_slots: int
    """S, the number of slots of the bank."""
    chunk_rows: int
    rank: int
    """The largest page rank among the active slots; 0 when no row takes part."""
    _host: _Host = field(repr=False)
    replayed: bool = False
    """Whether `slots` change in place; see `for_replay`."""
    _keep: dict[tuple[torch.dtype, int], Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        slots: Tensor | Sequence[int] | NDArray[np.integer[Any]],
        starts: Tensor,
        ranks: Tensor,
        *,
        chunk_rows: int = 64,
        device: torch.device | None = None,
    ) -> Segments:
        """Sort a batch's rows by slot.

        ``slots [T]`` holds −1 for "no adapter"; ``starts [S]`` is each slot's first rank-row, ``ranks [S]`` its page
        rank (the largest over its layers). The tables lie on ``device``, or else on that of ``starts``. They are
        computed on the host: of the three arguments, those that lie on a GPU are waited for. Raises `ValueError` for a
        slot outside −1 … S − 1.

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
        page_starts, page_ranks = starts.cpu().numpy(), ranks.cpu().numpy()
        taking_part = _asked(slots, len(page_ranks))
        if len(page_ranks):
            taking_part[page_ranks[taking_part] == 0] = -1
        # Rows of −1 come first, and are left away.
        by_slot = taking_part.argsort(kind="stable")[np.count_nonzero(taking_part < 0) :]
        its_slot = taking_part[by_slot]
        firsts = (np.diff(its_slot, prepend=-1) != 0).nonzero()[0]
        active, bounds = its_slot[firsts], np.append(firsts, len(its_slot))
        host = _Host(
            adapted=np.sort(by_slot),
            active=active,
            bounds=bounds,
            starts=page_starts[active].astype(np.int64),
            ranks=page_ranks[active].astype(np.int64),
        )
        on_device = _tables(device or starts.device, np.int32, taking_part, by_slot, active, bounds)
        return cls(
            slots=on_device[0],
            order=on_device[1],
            active=on_device[2],
            active_bounds=on_device[3],
            bank_slots=len(page_ranks),
            chunk_rows=chunk_rows,
            rank=int(host.ranks.max(initial=0)),
            _host=host,
        )

    @classmethod
    def for_replay(cls, slots: Tensor, bank_slots: int, rank: int) -> Segments:
        """Return what `gathered_lora` in Triton needs of a batch whose slots change in place.

        ``slots [T]`` int32 are read when a kernel runs, −1 for a row that takes no part; ``rank`` is at least the
        largest page rank that they will ever have. What is sorted by slot is not there: no other op can use it.
        """
        none = np.zeros(0, np.int64)
        nothing = slots[:0]
        return cls(
            slots=slots,
            order=nothing,
            active=nothing,
            active_bounds=nothing,
            bank_slots=bank_slots,
            chunk_rows=64,
            rank=rank,
            _host=_Host(none, none, none, none, none),
            replayed=True,
        )

    @property
    def empty(self) -> bool:
        """Whether no row takes part, so that every op returns ``y`` as it is."""
        return self.rank == 0

    @property
    def tokens(self) -> int:
        """T, the number of rows of the batch."""
        return self.slots.numel()

    @property
    def chunk_slot(self) -> Tensor:
        """``[C]`` int32: the slot of each chunk of at most `chunk_rows` positions of `order`."""
        return self._chunks[0]

    @property
    def chunk_start(self) -> Tensor:
        """``[C]`` int32: the first position of the chunk."""
        return self._chunks[1]

    @property
    def chunk_len(self) -> Tensor:
        """``[C]`` int32: the positions of the chunk."""
        return self._chunks[2]

    @property
    def rows(self) -> Tensor:
        """``[R]`` int64: the rank-rows of the active slots, in the bank's order."""
        return self._rank_rows[0]

    @property
    def row_slot(self) -> Tensor:
        """``[R]`` int64: the slot of each of these rank-rows."""
        return self._rank_rows[1]

    @property
    def row_index(self) -> Tensor:
        """``[R]`` int64: the number of the rank-row inside its slot."""
        return self._rank_rows[2]

    @cached_property
    def row_span(self) -> slice | None:
        """The range that `rows` covers in the bank, where it is one range."""
        return _range(self._row_tables[0])

    @cached_property
    def adapted(self) -> slice | Tensor:
        """The rows that take part, ascending: a range, or ``[T']`` int64."""
        span = _range(self._host.adapted)
        return torch.from_numpy(self._host.adapted).to(self.slots.device) if span is None else span

    @cached_property
    def only_slot(self) -> int | None:
        """The slot of all rows that take part, where there is just one."""
        return int(self._host.active[0]) if len(self._host.active) == 1 else None

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

    @cached_property
    def _chunks(self) -> tuple[Tensor, ...]:
        firsts, counts = self._host.bounds[:-1], np.diff(self._host.bounds)
        per_slot = -(-counts // self.chunk_rows)
        which = np.repeat(np.arange(len(counts)), per_slot)
        done = (np.arange(len(which)) - (per_slot.cumsum() - per_slot)[which]) * self.chunk_rows
        lengths = np.minimum(counts[which] - done, self.chunk_rows)
        return _tables(self.slots.device, np.int32, self._host.active[which], firsts[which] + done, lengths)

    @cached_property
    def _row_tables(self) -> tuple[Integers, Integers, Integers]:
        in_bank_order = self._host.starts.argsort()
        counts = self._host.ranks[in_bank_order]
        which = np.repeat(in_bank_order, counts)
        index = np.arange(len(which)) - np.repeat(counts.cumsum() - counts, counts)
        return self._host.starts[which] + index, self._host.active[which], index

    @cached_property
    def _rank_rows(self) -> tuple[Tensor, ...]:
        return _tables(self.slots.device, np.int64, *self._row_tables)


def as_range(ascending: Tensor) -> slice | None:
    """Return the range that row numbers cover, or ``None`` when they are not one range in ascending order.

    >>> as_range(torch.tensor([3, 4, 5])), as_range(torch.tensor([3, 5]))
    (slice(3, 6, None), None)
    """
    return _range(ascending.cpu().numpy())


def _range(ascending: Integers) -> slice | None:
    if len(ascending) == 0:
        return slice(0, 0)
    first = int(ascending[0])
    if ascending[-1] - first + 1 != len(ascending) or (ascending[1:] - ascending[:-1] != 1).any():
        return None
    return slice(first, first + len(ascending))


def _asked(slots: Tensor | Sequence[int] | NDArray[np.integer[Any]], count: int) -> Integers:
    asked = (slots.cpu().numpy() if isinstance(slots, Tensor) else np.asarray(slots)).astype(np.int64).reshape(-1)
    if len(asked) and not (asked.min() >= -1 and asked.max() < count):
        outside = sorted({slot for slot in asked.tolist() if not -1 <= slot < count})
        raise ValueError(f"Row slots must lie in −1 … {count - 1} (−1 is no adapter); {outside} do not.")
    return asked


def _tables(device: torch.device, dtype: type[np.integer[Any]], *tables: Integers) -> tuple[Tensor, ...]:
    """Return the tables on the device; a GPU gets them in one copy."""
    if device.type == "cpu":
        return tuple(torch.from_numpy(table.astype(dtype)) for table in tables)
    together, places = _joined(dtype, *tables)
    here = torch.from_numpy(together)
    there = (here.pin_memory() if device.type == "cuda" else here).to(device, non_blocking=True)
    return tuple(there[place] for place in places)


def _joined(dtype: type[np.integer[Any]], *tables: Integers) -> tuple[NDArray[np.integer[Any]], list[slice]]:
    """Return the tables one behind the other, each from a multiple of 16 bytes: Triton compiles for aligned ones."""
    unit = 16 // np.dtype(dtype).itemsize
    places, first = [], 0
    for table in tables:
        places.append(slice(first, first + len(table)))
        first += -(-len(table) // unit) * unit
    together = np.zeros(first, dtype)
    for place, table in zip(places, tables, strict=True):
        together[place] = table
    return together, places
