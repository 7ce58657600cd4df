"""Batches for the tests: a poisoned bank of mixed ranks, popularities, and the comparison that must be able to fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from mintbook_kernels import Factors, Segments
from mintbook_kernels.native import library
from tolerances import TOLERANCE
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NATIVE = ("native",) if DEVICE == "cpu" and library.available() else ()
POPULARITIES = ("identical", "distinct", "uniform", "zipf", "skewed")
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

# For each target the ranks by slot, and the pages' ranks. Slots leave out none, some or all of the targets (1 all), one
# is free (6), and the last but one spans two blocks of rank-rows (64). Nobody ever asks for the last.
RANKS = (
    (4, 0, 16, 1, 8, 33, 0, 70, 5),
    (4, 0, 0, 3, 8, 20, 0, 70, 5),
    (0, 0, 16, 2, 7, 33, 0, 1, 5),
)
PAGE_RANKS = (4, 6, 16, 3, 8, 33, 0, 70, 5)
WIDTHS = (45, 20, 33)
GAP = 16  # columns of nobody's between two targets; 16, so that widths of 16s leave every offset aligned
ASKED = len(PAGE_RANKS) - 1


@dataclass(frozen=True, eq=False)
class Case:
    """One call: y ``[T, ΣO]``, x ``[T, H]``, dy ``[T, ΣO]``, the rows' slots, the factors and where gradients go."""

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
        """``[T, ΣO]`` bool: the numbers to which something is added."""
        ranks = self.factors.rank[:, self.slots.clamp(min=0)] * (self.slots >= 0)
        widths = torch.tensor(self.factors.out_features, device=DEVICE)
        return (ranks > 0).T.repeat_interleave(widths, dim=1)

    def fill(self, value: float) -> None:
        """Let every B be ``value``."""
        for b in self.factors.b:
            b.fill_(value)


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
    widths: tuple[int, ...] = WIDTHS,
    ranks: tuple[tuple[int, ...], ...] = RANKS,
    page_ranks: tuple[int, ...] = PAGE_RANKS,
    gap: int = 2,
) -> Case:
    """Lay the slots out in shuffled order in banks whose every other number is NaN (factors) or random (gradients)."""
    ranks = ranks[: len(widths)]
    rank = torch.tensor(ranks, dtype=torch.int32, device=DEVICE)
    page_rank = torch.tensor(page_ranks, dtype=torch.int32, device=DEVICE)
    start, grad_start = _layout(page_ranks, gap=gap), _layout(page_ranks, gap=gap + 1)
    wide = sum(width_in + width + GAP for width in widths) + GAP
    bank = torch.full((sum(page_ranks) + gap * (len(page_ranks) + 1), wide), float("nan"), dtype=dtype, device=DEVICE)
    summed = torch.float64 if dtype == torch.float64 else torch.float32
    grad_bank = torch.randn(sum(page_ranks) + (gap + 1) * (len(page_ranks) + 1), wide, dtype=summed).to(DEVICE)
    a, b = _columns(bank, width_in, widths)
    for a_j, b_j, ranks_j in zip(a, b, ranks, strict=True):
        for first, count in zip(start.tolist(), ranks_j, strict=True):
            a_j[first : first + count] = (torch.randn(count, width_in) / width_in**0.5).to(DEVICE, dtype)
            b_j[first : first + count] = torch.randn(count, b_j.shape[1]).to(DEVICE, dtype)
    scale = (0.5 + torch.rand(rank.shape)).to(DEVICE)
    grad_rank = rank.clone()
    grad_rank[:, 4:5] = 0
    grad_rank[1:2, 5:6] = 0
    rows = slots.numel()
    return Case(
        y=torch.randn(rows, sum(widths)).to(DEVICE, dtype),
        x=torch.randn(rows, width_in).to(DEVICE, dtype),
        dy=torch.randn(rows, sum(widths)).to(DEVICE, dtype),
        slots=slots,
        factors=Factors(a, b, start, rank, scale),
        grads=Factors(*_columns(grad_bank, width_in, widths), grad_start, grad_rank, scale),
        segments=Segments.of(slots, start, page_rank),
    )


def _columns(bank: Tensor, width_in: int, widths: tuple[int, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    a, b, at = [], [], GAP
    for width in widths:
        middle, end = at + width_in, at + width_in + width
        a.append(bank[:, at:middle])
        b.append(bank[:, middle:end])
        at = end + GAP
    return tuple(a), tuple(b)


def _layout(page_ranks: tuple[int, ...], *, gap: int) -> Tensor:
    start, at = torch.zeros(len(page_ranks), dtype=torch.int64), gap
    for slot in torch.randperm(len(page_ranks)).tolist():
        start[slot] = at
        at += page_ranks[slot] + gap
    return start.to(DEVICE)


def with_swapped_adapters(factors: Factors, slots: Tensor) -> Factors:
    """Return the factors with one adapter in use exchanged for another; raise when the batch uses none."""
    ranks = factors.rank.any(0).tolist()
    order = list(range(factors.slots))
    victim = next(slot for slot in slots.tolist() if slot >= 0 and ranks[slot])
    order[victim] = next(slot for slot in reversed(order) if slot != victim and ranks[slot])
    return replace(factors, start=factors.start[order], rank=factors.rank[:, order], scale=factors.scale[:, order])


def with_swapped_targets(factors: Factors) -> Factors:
    """Return the factors with the A of the first two targets exchanged, and 0 for the poison in them."""
    bank = factors.a[0]._base.nan_to_num()
    first, second, *others = (bank.as_strided(a.shape, a.stride(), a.storage_offset()) for a in factors.a)
    return Factors((second, first, *others), factors.b, factors.start, factors.rank, factors.scale)


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
