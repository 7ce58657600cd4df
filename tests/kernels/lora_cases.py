"""Batches for the tests: a poisoned bank of mixed ranks, popularities, and the comparison that must be able to fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from mintbook_kernels import Factors, Segments
from tolerances import TOLERANCE
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
POPULARITIES = ("identical", "distinct", "uniform", "zipf", "skewed")
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

# Per slot: the rank at this layer, and the page's rank. One slot leaves this layer alone, one is free, and the last but
# one spans two blocks of rank-rows (64). Nobody ever asks for the last.
RANKS = (4, 0, 16, 1, 8, 33, 0, 70, 5)
PAGE_RANKS = (4, 6, 16, 3, 8, 33, 0, 70, 5)
ASKED = len(RANKS) - 1


@dataclass(frozen=True, eq=False)
class Case:
    """One call: y ``[T, O]``, x ``[T, H]``, dy ``[T, O]``, the rows' slots, the factors and where gradients go."""

    y: Tensor
    x: Tensor
    dy: Tensor
    slots: Tensor
    factors: Factors
    grads: Factors
    segments: Segments

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    @property
    def adapted(self) -> Tensor:
        """``[T]`` bool: the rows to which something is added."""
        return (self.slots >= 0) & (self.factors.rank[self.slots.clamp(min=0)] > 0)


def slots_of(popularity: str, rows: int, *, base_rows: bool = True) -> Tensor:
    """Draw the slot of every row; about one row in six has no adapter."""
    if popularity == "identical":
        slots = torch.full((rows,), 2)
    elif popularity == "distinct":
        slots = torch.arange(rows) % ASKED
    else:
        weights = {
            "uniform": torch.ones(ASKED),
            "zipf": torch.arange(1, ASKED + 1) ** -1.5,
            "skewed": torch.tensor([0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 20.0]),
        }[popularity]
        slots = torch.multinomial(weights, rows, replacement=True)
    if base_rows and rows > 1:
        slots = torch.where(torch.rand(rows) < 1 / 6, -1, slots)
    return slots.to(DEVICE)


def make_case(
    slots: Tensor,
    dtype: torch.dtype,
    *,
    width_in: int = 70,
    width_out: int = 45,
    ranks: tuple[int, ...] = RANKS,
    page_ranks: tuple[int, ...] = PAGE_RANKS,
) -> Case:
    """Lay the slots out in shuffled order in banks whose every other number is NaN (factors) or random (gradients)."""
    rank = torch.tensor(ranks, dtype=torch.int32, device=DEVICE)
    page_rank = torch.tensor(page_ranks, dtype=torch.int32, device=DEVICE)
    start, grad_start = _layout(page_ranks, gap=2), _layout(page_ranks, gap=3)
    wide, left = width_in + width_out + 9, 4
    bank = torch.full((sum(page_ranks) + 2 * len(ranks) + 2, wide), float("nan"), dtype=dtype, device=DEVICE)
    columns_a, columns_b = slice(left, left + width_in), slice(left + width_in, left + width_in + width_out)
    for first, count in zip(start.tolist(), ranks, strict=True):
        bank[first : first + count, columns_a] = (torch.randn(count, width_in) / width_in**0.5).to(DEVICE, dtype)
        bank[first : first + count, columns_b] = torch.randn(count, width_out).to(DEVICE, dtype)
    scale = (0.5 + torch.rand(len(ranks))).to(DEVICE)
    summed = torch.float64 if dtype == torch.float64 else torch.float32
    grad_bank = torch.randn(sum(page_ranks) + 3 * len(ranks) + 3, wide, dtype=summed).to(DEVICE)
    grad_rank = rank.clone()
    grad_rank[4:5] = 0
    rows = slots.numel()
    return Case(
        y=torch.randn(rows, width_out).to(DEVICE, dtype),
        x=torch.randn(rows, width_in).to(DEVICE, dtype),
        dy=torch.randn(rows, width_out).to(DEVICE, dtype),
        slots=slots,
        factors=Factors(bank[:, columns_a], bank[:, columns_b], start, rank, scale),
        grads=Factors(grad_bank[:, columns_a], grad_bank[:, columns_b], grad_start, grad_rank, scale),
        segments=Segments.of(slots, start, page_rank),
    )


def _layout(page_ranks: tuple[int, ...], *, gap: int) -> Tensor:
    start, at = torch.zeros(len(page_ranks), dtype=torch.int64), gap
    for slot in torch.randperm(len(page_ranks)).tolist():
        start[slot] = at
        at += page_ranks[slot] + gap
    return start.to(DEVICE)


def with_swapped_adapters(factors: Factors, slots: Tensor) -> Factors:
    """Return the factors with one adapter in use exchanged for another; raise when the batch uses none."""
    ranks = factors.rank.tolist()
    order = list(range(factors.slots))
    victim = next(slot for slot in slots.tolist() if slot >= 0 and ranks[slot] > 0)
    order[victim] = next(slot for slot in reversed(order) if slot != victim and ranks[slot] > 0)
    return replace(factors, start=factors.start[order], rank=factors.rank[order], scale=factors.scale[order])


def deviation(found: Tensor, wanted: Tensor, before: Tensor | float = 0.0) -> float:
    """Return rms(found − wanted) / rms(wanted − before)."""
    found, wanted = found.detach().double(), wanted.detach().double()
    size = (wanted - before).square().mean().sqrt()
    return float((found - wanted).square().mean().sqrt() / size)


def assert_matches(found: Tensor, wanted: Tensor, dtype: torch.dtype, before: Tensor | float = 0.0) -> None:
    """Demand that ``found`` is ``wanted`` within tolerance, and not ``wanted`` with its update a little larger."""
    tolerance = TOLERANCE[dtype]
    if torch.equal(wanted.double() - before, torch.zeros_like(wanted, dtype=torch.float64)):
        assert torch.equal(found.double(), wanted.double()), "nothing should have been added"
        return
    assert deviation(found, wanted, before) <= tolerance
    spoilt = before + (wanted.double() - before) * (1 + 2 * tolerance)
    assert deviation(found, spoilt, before) > tolerance, "the comparison cannot fail"


def bits(tensor: Tensor) -> Tensor:
    """Return the numbers as integers, so that −0.0 differs from 0.0 and NaN equals itself."""
    return tensor.detach().contiguous().view(BITS[tensor.dtype.itemsize])


def twice(call: Callable[[], Tensor]) -> None:
    """Demand the same bits from two calls."""
    assert torch.equal(bits(call()), bits(call()))
