"""The gradients against autograd of the reference."""

from __future__ import annotations

import pytest
import torch
from lora_cases import (
    DEVICE,
    POPULARITIES,
    Case,
    assert_matches,
    bits,
    deviation,
    make_case,
    slots_of,
    with_swapped_adapters,
    with_swapped_targets,
)
from mintbook_kernels import Factors, lora_grad
from mintbook_kernels.lora_grad.reference import lora_grad as reference
from tolerances import TOLERANCE
from torch import Tensor

BACKENDS = ("torch", "triton")
DTYPES = (torch.float32, torch.bfloat16)


def placed(gradient: Tensor, bank: Tensor, factors: Factors, grads: Factors, j: int) -> Tensor:
    """Return ``bank`` plus the reference's gradient of every slot that is trained, at the bank's own rows."""
    total = bank.clone()
    for slot in range(factors.slots):
        count = min(int(factors.rank[j, slot]), int(grads.rank[j, slot]))
        source, target = int(factors.start[slot]), int(grads.start[slot])
        total[target : target + count] += gradient[source : source + count]
    return total


def check(case: Case, backend: str) -> None:
    factors, grads = case.factors, case.grads
    before_a, before_b = ([part.clone() for part in parts] for parts in (grads.a, grads.b))
    dx = lora_grad(case.dy, case.x, factors, case.segments, grads, need_dx=True, backend=backend)
    wanted_dx, da, db = reference(case.dy, case.x, factors, case.slots)
    assert_matches(dx, wanted_dx, case.dtype)
    for j in range(factors.targets):
        for found, gradient, before in ((grads.a[j], da[j], before_a[j]), (grads.b[j], db[j], before_b[j])):
            assert_matches(found, placed(gradient, before, factors, grads, j), case.dtype, before.double())
    if case.adapted.any():
        for other in (with_swapped_adapters(factors, case.slots), with_swapped_targets(factors)):
            assert deviation(dx, reference(case.dy, case.x, other, case.slots)[0]) > TOLERANCE[case.dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("popularity", POPULARITIES)
@pytest.mark.parametrize("rows", [1, 63, 133, 431])
def test_plain_torch_matches(rows: int, popularity: str, dtype: torch.dtype) -> None:
    check(make_case(slots_of(popularity, rows), dtype), "torch")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "popularity"), [(1, "identical"), (63, "distinct"), (133, "zipf")])
def test_triton_matches(rows: int, popularity: str, dtype: torch.dtype) -> None:
    check(make_case(slots_of(popularity, rows), dtype), "triton")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("width_in", "widths"), [(200, (150, 70)), (64, (64, 32, 80))])
def test_other_widths_match(width_in: int, widths: tuple[int, ...], backend: str) -> None:
    check(make_case(slots_of("distinct", 16), torch.bfloat16, width_in=width_in, widths=widths), backend)


@pytest.mark.parametrize("gap", [0, 2])
@pytest.mark.parametrize("slots", [[0, 1, 2, 1, -1], [1, 0, 0, 1], [2, 2, 2]])
def test_slots_that_use_their_whole_pages_match(slots: list[int], gap: int) -> None:
    whole = (4, 6, 3, 1, 1, 1)
    sizes = {"ranks": (whole,) * 3, "page_ranks": whole, "gap": gap}
    check(make_case(torch.tensor(slots, device=DEVICE), torch.float32, **sizes), "torch")


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_runs_give_the_same_bits_and_touch_no_other_row(backend: str) -> None:
    case = make_case(slots_of("uniform", 50), torch.bfloat16)
    bank = case.grads.a[0]._base
    before, runs = bank.clone(), []
    for _ in range(2):
        bank.copy_(before)
        dx = lora_grad(case.dy, case.x, case.factors, case.segments, case.grads, need_dx=True, backend=backend)
        runs.append((bits(dx), bits(bank)))
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))
    marks = torch.zeros_like(bank)
    for j, ranks in enumerate(case.grads.rank.tolist()):
        for first, rank in zip(case.grads.start.tolist(), ranks, strict=True):
            for part in (case.grads.a[j], case.grads.b[j]):
                marks.as_strided(part.shape, part.stride(), part.storage_offset())[first : first + rank] = 1
    assert torch.equal(bits(bank)[marks == 0], bits(before)[marks == 0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_frozen_slot_gets_no_gradient_but_passes_dx_on(backend: str) -> None:
    case = make_case(torch.full((5,), 4, device=DEVICE), torch.float32)
    bank = case.grads.a[0]._base
    before = bank.clone()
    dx = lora_grad(case.dy, case.x, case.factors, case.segments, case.grads, need_dx=True, backend=backend)
    assert torch.equal(bank, before)
    assert_matches(dx, reference(case.dy, case.x, case.factors, case.slots)[0], torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_an_adapter_get_a_dx_of_zero(backend: str) -> None:
    case = make_case(torch.tensor([-1, 2, 1, -1], device=DEVICE), torch.float32)
    dx = lora_grad(case.dy, case.x, case.factors, case.segments, None, need_dx=True, backend=backend)
    assert torch.equal(dx.any(1).cpu(), torch.tensor([False, True, False, False]))
    assert lora_grad(case.dy, case.x, case.factors, case.segments, None, need_dx=False, backend=backend) is None


@pytest.mark.parametrize("slots", [[-1, -1], [1, 1]])
def test_a_layer_without_an_update_has_a_dx_of_zero(slots: list[int]) -> None:
    case = make_case(torch.tensor(slots, device=DEVICE), torch.float32)
    bank = case.grads.a[0]._base
    before = bank.clone()
    dx = lora_grad(case.dy, case.x, case.factors, case.segments, case.grads, need_dx=True, backend="torch")
    assert torch.equal(dx, torch.zeros_like(case.x)) and torch.equal(bank, before)
