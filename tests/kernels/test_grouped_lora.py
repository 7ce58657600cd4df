"""Grouped rows against the reference, and bit by bit where nothing may change."""

from __future__ import annotations

from dataclasses import replace

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
from mintbook_kernels import Segments, grouped_lora
from mintbook_kernels.grouped_lora.reference import grouped_lora as reference
from tolerances import TOLERANCE
from torch import Tensor

BACKENDS = ("torch", "triton", *NATIVE)
DTYPES = (torch.float32, torch.bfloat16)


def forward(case: Case, backend: str) -> Tensor:
    return grouped_lora(case.y.clone(), case.x, case.factors, case.segments, backend=backend)


def check(case: Case, backend: str) -> None:
    found, before = forward(case, backend), case.y.double()
    assert_matches(found, reference(case.y, case.x, case.factors, case.slots), case.dtype, before)
    if case.adapted.any():
        swapped = reference(case.y, case.x, with_swapped_adapters(case.factors, case.slots), case.slots)
        assert deviation(found, swapped, before) > TOLERANCE[case.dtype]
    if case.adapted.any() and case.factors.targets > 1:
        crossed = reference(case.y, case.x, with_swapped_targets(case.factors), case.slots)
        assert deviation(found, crossed, before) > TOLERANCE[case.dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("popularity", POPULARITIES)
@pytest.mark.parametrize("rows", [1, 63, 133, 431])
def test_plain_torch_matches(rows: int, popularity: str, dtype: torch.dtype) -> None:
    check(make_case(slots_of(popularity, rows), dtype), "torch")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "popularity"), [(1, "identical"), (63, "zipf"), (63, "distinct"), (133, "skewed"), (133, "uniform")]
)
def test_triton_matches(rows: int, popularity: str, dtype: torch.dtype) -> None:
    check(make_case(slots_of(popularity, rows), dtype), "triton")


def test_triton_matches_in_fp16() -> None:
    check(make_case(slots_of("distinct", 20), torch.float16), "triton")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("width_in", "widths"), [(200, (150,)), (200, (70, 130)), (64, (64, 32, 80))])
def test_other_widths_match(width_in: int, widths: tuple[int, ...], backend: str) -> None:
    check(make_case(slots_of("distinct", 16), torch.float32, width_in=width_in, widths=widths), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rank", [17, 128, 256])
def test_every_tile_of_the_table_matches(rank: int, backend: str) -> None:
    ranks, page_ranks = ((rank, 1), (rank - 3, 0), (0, 1)), (rank, 1)
    check(make_case(torch.tensor([0, 0, 1], device=DEVICE), torch.float32, ranks=ranks, page_ranks=page_ranks), backend)


@pytest.mark.parametrize("slots", [[2] * 7, [2] * 3 + [-1] * 4, [-1, 2, 2, -1], [2, -1, 2, -1, 2], [0, 5, 0, 5]])
def test_every_way_to_pick_rows_matches(slots: list[int]) -> None:
    check(make_case(torch.tensor(slots, device=DEVICE), torch.float32), "torch")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gap", [0, 2])
@pytest.mark.parametrize("slots", [[0, 1, 2, 1, -1], [1, 0, 0, 1], [2, 2, 2]])
def test_slots_that_use_their_whole_pages_match(slots: list[int], gap: int, dtype: torch.dtype) -> None:
    whole = (4, 6, 3)
    check(make_case(torch.tensor(slots, device=DEVICE), dtype, ranks=(whole,) * 3, page_ranks=whole, gap=gap), "torch")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_without_an_adapter_keep_their_bits(dtype: torch.dtype, backend: str) -> None:
    case = make_case(slots_of("uniform", 40), dtype)
    strange = torch.tensor([-0.0, float("nan"), float("inf"), 0.0], dtype=dtype, device=DEVICE)
    base = (case.slots < 0) | (case.slots == 6)
    case.y[base] = strange.repeat(25)[: case.y.shape[1]]
    case.x[base] = float("nan")
    found = forward(case, backend)
    assert base.any() and torch.equal(bits(found[~case.adapted]), bits(case.y[~case.adapted]))
    assert found[~base].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_zero_adapter_changes_no_bit(dtype: torch.dtype, backend: str) -> None:
    case = make_case(slots_of("distinct", 40), dtype)
    case.fill(0.0)
    assert torch.equal(bits(forward(case, backend)), bits(case.y))


def test_triton_adds_nothing_to_a_negative_zero() -> None:
    case = make_case(slots_of("distinct", 8), torch.float32)
    case.fill(0.0)
    case.y.fill_(-0.0)
    assert torch.equal(bits(forward(case, "triton")), bits(case.y))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_adapter_of_nan_spoils_only_its_own_rows(backend: str) -> None:
    case = make_case(slots_of("distinct", 24), torch.float32)
    clean = forward(case, backend)
    its = slice(int(case.factors.start[5]), int(case.factors.start[5]) + 33)
    for a, b in zip(case.factors.a, case.factors.b, strict=True):
        a[its] = float("nan")
        if backend != "torch":
            b[its] = float("nan")
    spoilt, others = forward(case, backend), case.slots != 5
    assert spoilt[~others].isnan().all()
    assert torch.equal(bits(spoilt[others]), bits(clean[others]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_runs_give_the_same_bits(backend: str) -> None:
    case = make_case(slots_of("uniform", 50), torch.bfloat16)
    twice(lambda: forward(case, backend))


def test_a_batch_without_adapters_is_returned_as_it_is() -> None:
    case = make_case(torch.tensor([-1, 6, -1], device=DEVICE), torch.float32)
    assert case.segments.empty
    assert grouped_lora(case.y, case.x, case.factors, case.segments) is case.y


def test_without_grad_the_update_is_in_place() -> None:
    case = make_case(torch.tensor([2, -1], device=DEVICE), torch.float32)
    wanted = reference(case.y, case.x, case.factors, case.slots)
    assert grouped_lora(case.y, case.x, case.factors, case.segments, backend="torch") is case.y
    assert_matches(case.y, wanted, torch.float32)


def test_operands_that_do_not_fit_are_refused() -> None:
    case = make_case(torch.tensor([2, 0], device=DEVICE), torch.float32)

    def call(**changed: object) -> Tensor:
        return grouped_lora(
            **({"y": case.y, "x": case.x, "factors": case.factors, "segments": case.segments} | changed)
        )

    with pytest.raises(ValueError, match=r"x is \[2, 69\].*70 → 45 \+ 20 \+ 33.*\[2, 70\]"):
        call(x=case.x[:, :69])
    with pytest.raises(ValueError, match=r"y is \[1, 98\]"):
        call(y=case.y[:1])
    with pytest.raises(ValueError, match="bfloat16"):
        call(x=case.x.bfloat16())
    with pytest.raises(ValueError, match="side by side"):
        call(x=case.x.T.contiguous().T)
    half = make_case(case.slots, torch.bfloat16)
    with pytest.raises(ValueError, match=r"grads are torch\.bfloat16"):
        call(grads=half.factors)
    with pytest.raises(ValueError, match=r"grads describe 70 → 45 and"):
        call(
            grads=replace(
                case.grads, a=case.grads.a[:1], b=case.grads.b[:1], rank=case.grads.rank[:1], scale=case.grads.scale[:1]
            )
        )
    with pytest.raises(ValueError, match="9 slots"):
        call(segments=Segments.of([2, 9], torch.zeros(10, dtype=torch.int64), torch.ones(10, dtype=torch.int32)))
