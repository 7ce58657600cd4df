"""The tables of a batch, checked against a count by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lora_cases import POPULARITIES, slots_of
from mintbook_kernels import Segments
from mintbook_kernels.segments import _joined

STARTS = torch.tensor([20, 0, 50, 8, 90, 60, 70, 100])
RANKS = torch.tensor([8, 4, 10, 3, 0, 1, 16, 5], dtype=torch.int32)


@pytest.mark.parametrize("popularity", POPULARITIES)
@pytest.mark.parametrize("rows", [1, 63, 431])
def test_chunks_cover_every_adapted_row_once(popularity: str, rows: int) -> None:
    slots = slots_of(popularity, rows).cpu()
    segments = Segments.of(slots, STARTS, RANKS, chunk_rows=16)
    covered: dict[int, int] = {}
    tables = (segments.chunk_slot, segments.chunk_start, segments.chunk_len)
    for slot, start, length in zip(*(table.tolist() for table in tables), strict=True):
        assert 1 <= length <= 16
        for row in segments.order[start : start + length].tolist():
            assert row not in covered
            covered[row] = slot
    assert covered == {row: slot for row, slot in enumerate(slots.tolist()) if slot >= 0 and RANKS[slot] > 0}


@pytest.mark.parametrize("popularity", POPULARITIES)
def test_each_active_slot_has_its_range_in_batch_order(popularity: str) -> None:
    slots = slots_of(popularity, 133).cpu()
    segments = Segments.of(slots, STARTS, RANKS)
    bounds = segments.active_bounds.tolist()
    for index, slot in enumerate(segments.active.tolist()):
        rows = segments.order[bounds[index] : bounds[index + 1]].tolist()
        assert rows == [row for row, other in enumerate(slots.tolist()) if other == slot]


def test_rank_rows_are_those_of_the_active_slots_in_bank_order() -> None:
    segments = Segments.of([0, 1, -1, 4, 0], STARTS, RANKS)
    assert segments.rows.tolist() == [0, 1, 2, 3, *range(20, 28)]
    assert segments.row_slot.tolist() == [1] * 4 + [0] * 8
    assert segments.row_index.tolist() == [*range(4), *range(8)]
    assert segments.row_span is None and segments.rank == 8
    owner = [[slot == mine for slot in segments.row_slot.tolist()] for mine in (0, 1, 0)]
    assert segments.owner.tolist() == owner
    assert (segments.keep(torch.bfloat16) == -segments.owner.to(torch.int16)).all()


def test_neighbouring_slots_are_one_span_of_the_bank() -> None:
    segments = Segments.of([0, 1], torch.tensor([4, 0]), torch.tensor([2, 4]))
    assert segments.row_span == slice(0, 6)


@pytest.mark.parametrize(
    ("slots", "adapted"),
    [([-1, 0, 1, -1], slice(1, 3)), ([0, 0], slice(0, 2)), ([0, -1, 0], [0, 2]), ([-1], slice(0, 0))],
)
def test_adapted_rows_are_a_range_where_they_can_be(slots: list[int], adapted: slice | list[int]) -> None:
    found = Segments.of(slots, STARTS, RANKS).adapted
    assert (found if isinstance(found, slice) else found.tolist()) == adapted


def test_a_freed_slot_and_no_slot_are_the_same() -> None:
    segments = Segments.of([4, -1], STARTS, RANKS)
    assert segments.empty and segments.slots.tolist() == [-1, -1] and segments.tokens == 2
    assert Segments.of([], STARTS, RANKS).empty
    assert Segments.of([-1], STARTS[:0], RANKS[:0]).empty


def test_later_changes_of_the_bank_do_not_reach_the_tables() -> None:
    starts, ranks = STARTS.clone(), RANKS.clone()
    segments = Segments.of([0, 1], starts, ranks)
    starts.zero_(), ranks.zero_()
    assert segments.rows.tolist() == [0, 1, 2, 3, *range(20, 28)]


@pytest.mark.parametrize("slots", [[8], [-2], [0, 9]])
def test_a_slot_outside_the_bank_is_refused(slots: list[int]) -> None:
    with pytest.raises(ValueError, match="Row slots must lie in −1 … 7"):
        Segments.of(slots, STARTS, RANKS)


def test_chunks_that_no_tile_could_hold_are_refused() -> None:
    for chunk_rows in (8, 48):
        with pytest.raises(ValueError, match="power of two"):
            Segments.of([0], STARTS, RANKS, chunk_rows=chunk_rows)


@pytest.mark.parametrize(("dtype", "unit"), [(np.int32, 4), (np.int64, 2)])
def test_tables_that_travel_together_start_at_16_bytes(dtype: type[np.integer], unit: int) -> None:
    tables = [np.arange(5), np.arange(0), np.arange(8) + 10, np.arange(1) + 20]
    together, places = _joined(dtype, *tables)
    assert together.dtype == dtype and all(place.start % unit == 0 for place in places)
    assert [together[place].tolist() for place in places] == [table.tolist() for table in tables]
