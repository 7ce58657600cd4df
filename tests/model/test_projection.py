"""Projections: one product for linears that share an input, their weights in one place, and no stale answers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mintbook.errors import BaseUnsupported
from mintbook.model.frozen_weight import FrozenWeight
from mintbook.model.invariance import check_invariance
from mintbook.model.projection import ProjectionPart, attach
from mintbook.store.page import Site


class Pair(nn.Module):
    """Linears that share an input, and an unembedding."""

    def __init__(self, *biases: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleList(nn.Linear(8, 4 + i, bias=bias) for i, bias in enumerate(biases))
        self.head = nn.Linear(8, 3)
        self.requires_grad_(False)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def set_output_embeddings(self, head: nn.Module) -> None:
        self.head = head


def parts(*biases: bool) -> tuple[list[nn.Linear], list[ProjectionPart]]:
    pair = Pair(*biases)
    linears = list(pair.parts)
    sites = [Site(f"parts.{i}", 8, linear.out_features) for i, linear in enumerate(linears)]
    attach(pair, sites, [range(len(linears))])
    return linears, list(pair.parts)


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
    fused = modules[0].projection.weight.weight
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


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_a_tiled_product_do_not_depend_on_their_company(dtype: torch.dtype, packed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((48, 64), generator=generator).to(dtype)
    rows = torch.randn((70, 64), generator=generator).to(dtype)
    frozen = FrozenWeight(weight, None, packed=packed, tile=32)
    whole = frozen.times(rows)
    assert whole.shape == (70, 48)
    torch.testing.assert_close(whole, rows @ weight.T)
    for count in (1, 2, 31, 33, 69):
        for start in (0, 1, 70 - count):
            assert torch.equal(frozen.times(rows[start : start + count]), whole[start : start + count])


def test_a_packed_weight_gives_the_bits_of_the_plain_one() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((96, 64), generator=generator).bfloat16()
    bias = torch.randn(96, generator=generator).bfloat16()
    packed, plain = FrozenWeight(weight, bias, packed=True), FrozenWeight(weight, bias)
    for count in (1, 7, 32, 100):
        rows = torch.randn((count, 128), generator=generator).bfloat16()[:, :64]
        assert torch.equal(packed.times(rows), plain.times(rows))
    assert FrozenWeight(weight.float(), None, packed=True).packed is None
    assert packed.packed_bytes in (0, weight.numel() * 2)


def test_a_machine_whose_rows_depend_on_their_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = FrozenWeight(torch.randn(8, 16), None, tile=32)
    check_invariance([frozen])

    def by_place(rows: torch.Tensor) -> torch.Tensor:
        return rows @ frozen.weight.T + torch.arange(len(rows))[:, None] * 1e-6

    monkeypatch.setattr(frozen, "times", by_place)
    with pytest.raises(BaseUnsupported, match="whose bits depend on their place"):
        check_invariance([frozen])
