"""Gathered rows against the reference."""

from __future__ import annotations

import pytest
import torch
from lora_cases import (
    DEVICE,
    NATIVE,
    POPULARITIES,
    Case,
    assert_matches,
    bits,
    deviation,
    make_case,
    slots_of,
    twice,
    with_swapped_adapters,
    with_swapped_targets,
)
from mintbook_kernels import Segments, gathered_lora
from mintbook_kernels.gathered_lora.reference import gathered_lora as reference
from tolerances import TOLERANCE
from torch import Tensor

BACKENDS = ("torch", "triton", *NATIVE)
DTYPES = (torch.float32, torch.bfloat16)


def forward(case: Case, backend: str) -> Tensor:
    return gathered_lora(case.y.clone(), case.x, case.factors, case.segments, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("popularity", POPULARITIES)
@pytest.mark.parametrize("rows", [1, 13])
def test_matches(rows: int, popularity: str, dtype: torch.dtype, backend: str) -> None:
    case = make_case(slots_of(popularity, rows), dtype)
    found, before = forward(case, backend), case.y.double()
    assert_matches(found, reference(case.y, case.x, case.factors, case.slots), dtype, before)
    if case.adapted.any():
        swapped = reference(case.y, case.x, with_swapped_adapters(case.factors, case.slots), case.slots)
        assert deviation(found, swapped, before) > TOLERANCE[dtype]
        crossed = reference(case.y, case.x, with_swapped_targets(case.factors), case.slots)
        assert deviation(found, crossed, before) > TOLERANCE[dtype]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rank", [17, 256])
def test_every_tile_of_the_table_matches(rank: int, backend: str) -> None:
    slots = torch.tensor([0, 1, -1], device=DEVICE)
    case = make_case(
        slots, torch.float32, width_in=300, widths=(280, 9), ranks=((rank, 1), (0, 1)), page_ranks=(rank, 1)
    )
    found = forward(case, backend)
    assert_matches(found, reference(case.y, case.x, case.factors, slots), torch.float32, case.y.double())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_base_rows_and_zero_adapters_keep_their_bits(dtype: torch.dtype, backend: str) -> None:
    case = make_case(slots_of("distinct", 16), dtype)
    base = case.slots < 0
    case.y[base] = -0.0
    assert base.any() and torch.equal(bits(forward(case, backend)[~case.adapted]), bits(case.y[~case.adapted]))
    case.fill(0.0)
    assert torch.equal(bits(forward(case, backend)), bits(case.y))
    if backend == "triton":
        case.y.fill_(-0.0)
        assert torch.equal(bits(forward(case, backend)), bits(case.y))


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_runs_give_the_same_bits(backend: str) -> None:
    case = make_case(slots_of("uniform", 16), torch.bfloat16)
    twice(lambda: forward(case, backend))


def test_a_call_that_would_need_a_gradient_is_refused() -> None:
    case = make_case(torch.tensor([2], device=DEVICE), torch.float32)
    with pytest.raises(ValueError, match="grouped_lora"):
        gathered_lora(case.y, case.x.requires_grad_(), case.factors, case.segments)


def test_slots_that_change_in_place_are_followed_by_triton_and_refused_by_the_others() -> None:
    case = make_case(torch.tensor([2, -1, 5], device=DEVICE), torch.float32)
    slots = case.slots.int()
    segments = Segments.for_replay(slots, case.factors.slots, 64)
    for now in ([2, -1, 5], [-1, 4, -1], [6, 3, 3]):
        slots.copy_(torch.tensor(now))
        found = gathered_lora(case.y.clone(), case.x, case.factors, segments, backend="triton")
        wanted = reference(case.y, case.x, case.factors, torch.tensor(now, device=DEVICE))
        assert_matches(found, wanted, torch.float32, case.y.double())
    for backend in ("torch", *NATIVE):
        with pytest.raises(ValueError, match="for_replay are for Triton"):
            gathered_lora(case.y, case.x, case.factors, segments, backend=backend)
