"""Projections: one product for linears that share an input, their weights in one place, and no stale answers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mintbook.model.invariance import check_invariance
from mintbook.model.projection import AdapterPort, Projection, ProjectionPart, product


def parts(*biases: bool) -> tuple[list[nn.Linear], list[ProjectionPart]]:
    torch.manual_seed(0)
    linears = [nn.Linear(8, 4 + i, bias=bias).requires_grad_(False) for i, bias in enumerate(biases)]
    projection = Projection(linears, 0, AdapterPort())
    return linears, [ProjectionPart(linear, projection, place) for place, linear in enumerate(linears)]


@pytest.mark.parametrize("biases", [(False,), (False, False, False), (True, True), (True, False)])
def test_each_part_computes_its_own_linear(biases: tuple[bool, ...]) -> None:
    torch.manual_seed(0)
    expected = [nn.Linear(8, 4 + i, bias=bias) for i, bias in enumerate(biases)]
    _, modules = parts(*biases)
    x = torch.randn(1, 5, 8)
    for module, linear in zip(modules, expected, strict=True):
        torch.testing.assert_close(module(x), linear(x))


def test_the_weights_are_counted_once() -> None:
    linears, modules = parts(False, False)
    fused = modules[0].projection.weight
    assert [linear.weight.data_ptr() for linear in linears] == [fused.data_ptr(), fused[4:].data_ptr()]
    assert fused.shape == (9, 8)


def test_another_tensor_is_computed_anew_and_nothing_is_kept_after_the_last_part() -> None:
    _, (first, second) = parts(False, False)
    x, z = torch.randn(2, 3, 8).unbind(0)
    first(x)
    torch.testing.assert_close(second(z), second.linear(z))
    torch.testing.assert_close(second(x), second.linear(x))
    assert first.projection._last is None


def test_a_tensor_that_comes_back_under_another_plan_is_computed_anew() -> None:
    _, (first, second) = parts(False, False)
    x = torch.randn(3, 8)
    first.projection._last = (x, object(), torch.zeros(3, 9))  # type: ignore[assignment]
    torch.testing.assert_close(second(x), second.linear(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_a_tiled_product_do_not_depend_on_their_company(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((48, 64), generator=generator).to(dtype)
    rows = torch.randn((70, 64), generator=generator).to(dtype)
    whole = product(rows, weight, None, 32)
    assert whole.shape == (70, 48)
    torch.testing.assert_close(whole, rows @ weight.T)
    for count in (1, 2, 31, 33, 69):
        for start in (0, 1, 70 - count):
            assert torch.equal(product(rows[start : start + count], weight, None, 32), whole[start : start + count])


def test_a_machine_whose_rows_depend_on_their_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_invariance([torch.randn(8, 16)], 32)

    def by_place(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return rows @ weight.T + torch.arange(len(rows))[:, None] * 1e-6

    monkeypatch.setattr("mintbook.model.invariance.linear", by_place)
    with pytest.raises(Exception, match="whose bits depend on their place"):
        check_invariance([torch.randn(8, 16)], 32)
