"""The slot bank: whatever is taken and given back, a slot's rows are its own."""

from __future__ import annotations

import random

import pytest
import torch

from mintbook.errors import CapacityError
from mintbook.model.slots import SlotBank
from mintbook.store.page import Page, Site

SITES = (Site("up", 3, 5), Site("down", 5, 3))


def page_of(rank: int, number: float) -> Page:
    return Page(torch.full((rank, 16), number), SITES, (rank, rank), (1.0, 2.0))


def make(rows: int) -> SlotBank:
    return SlotBank(SITES, [[0], [1]], rows=rows, dtype=torch.float32, device=torch.device("cpu"))


def rows_of(bank: SlotBank, slot: int) -> torch.Tensor:
    start = int(bank.starts[slot])
    return bank.tensor[start : start + int(bank.page_ranks[slot])]


def test_rows_that_are_free_but_apart_are_brought_together() -> None:
    bank = make(12)
    slots = [bank.load(page_of(2, number)) for number in range(6)]
    for slot in slots[::2]:
        bank.free(slot)
    wide = bank.load(page_of(6, 9.0))
    assert bank.free_rows == 0
    assert rows_of(bank, wide).unique().tolist() == [9.0]
    assert [rows_of(bank, slot).unique().tolist() for slot in slots[1::2]] == [[1.0], [3.0], [5.0]]
    with pytest.raises(CapacityError, match="0 of 12 are free"):
        bank.load(page_of(1, 0.0))


def test_slots_of_many_ranks_never_overwrite_each_other() -> None:
    draw = random.Random(0)
    bank = make(40)
    held: dict[int, tuple[int, float]] = {}
    for turn in range(2000):
        if held and draw.random() < 0.45:
            slot = draw.choice(list(held))
            bank.free(slot)
            del held[slot]
        rank = draw.choice((1, 2, 3, 5, 8, 13))
        if rank <= bank.free_rows:
            held[bank.load(page_of(rank, float(turn)))] = (rank, float(turn))
        for slot, (rank, number) in held.items():
            assert rows_of(bank, slot).tolist() == [[number] * 16] * rank
        assert bank.free_rows == 40 - sum(rank for rank, _ in held.values())
