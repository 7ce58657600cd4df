"""Grouped rows as a node of autograd."""

from __future__ import annotations

import pytest
import torch
from lora_cases import DEVICE, assert_matches, make_case, slots_of
from mintbook_kernels import grouped_lora, lora_grad
from mintbook_kernels.lora_grad.reference import lora_grad as reference
from torch import Tensor

BACKENDS = ("torch", "triton")
DTYPES = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_gives_dx_and_fills_the_gradient_bank(dtype: torch.dtype, backend: str) -> None:
    case = make_case(slots_of("distinct", 40), dtype)
    x, weight = case.x.clone().requires_grad_(), torch.randn(98, 70, device=DEVICE, dtype=dtype) / 9
    bank = case.grads.a[0]._base
    before = bank.clone()
    grouped_lora(x @ weight.T, x, case.factors, case.segments, grads=case.grads, backend=backend).backward(case.dy)
    dx, _, _ = reference(case.dy, case.x, case.factors, case.slots)
    assert_matches(x.grad, dx + case.dy.float() @ weight.float(), dtype)
    twin = bank.clone()
    bank.copy_(before)
    lora_grad(case.dy, case.x, case.factors, case.segments, case.grads, need_dx=False, backend=backend)
    assert torch.equal(bank, twin)
    assert all(not torch.equal(part, before[:, :1].expand_as(part)) for part in (*case.grads.a, *case.grads.b))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_trigger_brings_gradients_where_x_needs_none(backend: str) -> None:
    case = make_case(torch.tensor([2, 2, 0], device=DEVICE), torch.float32)
    trigger = torch.ones(1, device=DEVICE, requires_grad=True)
    before = case.grads.a[0].clone()
    y = grouped_lora(case.y, case.x, case.factors, case.segments, grads=case.grads, trigger=trigger, backend=backend)
    y.backward(case.dy)
    assert not torch.equal(case.grads.a[0], before)
    assert torch.equal(trigger.grad, torch.zeros(1, device=DEVICE))


def test_grads_that_no_backward_would_fill_are_refused() -> None:
    case = make_case(torch.tensor([2], device=DEVICE), torch.float32)
    with pytest.raises(ValueError, match="trigger"):
        grouped_lora(case.y, case.x, case.factors, case.segments, grads=case.grads)
    with torch.no_grad():
        grouped_lora(case.y, case.x, case.factors, case.segments, grads=case.grads)


@pytest.mark.parametrize("slots", [[2] * 4, [2, -1, 0, 5], [-1, 2, 2, -1]])
def test_the_node_passes_gradcheck(slots: list[int]) -> None:
    case = make_case(torch.tensor(slots, device=DEVICE), torch.float64, width_in=5, widths=(3, 2))
    y, x = case.y.requires_grad_(), case.x.requires_grad_()
    trigger = torch.ones(1, dtype=torch.float64, device=DEVICE, requires_grad=True)

    def node(y: Tensor, x: Tensor, trigger: Tensor) -> Tensor:
        return grouped_lora(y * 1.0, x, case.factors, case.segments, trigger=trigger, backend="torch")

    assert torch.autograd.gradcheck(node, (y, x, trigger))


@pytest.mark.parametrize("slots", [[2] * 4, [2, -1, 0, 2]])
def test_the_factors_gradients_are_finite_differences(slots: list[int]) -> None:
    case = make_case(torch.tensor(slots, device=DEVICE), torch.float64, width_in=5, widths=(3, 2))
    case.grads.a[0]._base.zero_()
    lora_grad(case.dy, case.x, case.factors, case.segments, case.grads, need_dx=False, backend="torch")
    row, grad_row, step = int(case.factors.start[2]) + 3, int(case.grads.start[2]) + 3, 1e-6

    def loss() -> float:
        y = grouped_lora(case.y.clone(), case.x, case.factors, case.segments, backend="torch")
        return float((y * case.dy).sum())

    for values, gradient in zip((*case.factors.a, *case.factors.b), (*case.grads.a, *case.grads.b), strict=True):
        for column in range(values.shape[1]):
            kept = float(values[row, column])
            values[row, column] = kept + step
            above = loss()
            values[row, column] = kept - step
            below = loss()
            values[row, column] = kept
            assert float(gradient[grad_row, column]) == pytest.approx((above - below) / (2 * step), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("view", [True, False])
def test_y_may_be_a_view_or_a_leaf(view: bool) -> None:
    case = make_case(torch.tensor([2, -1, 0], device=DEVICE), torch.float32)
    x = case.x.clone().requires_grad_()
    leaf = case.y.clone().requires_grad_()
    y = (leaf * 1.0).unsqueeze(0).view(3, -1) if view else leaf
    out = grouped_lora(y, x, case.factors, case.segments, backend="torch")
    assert out is not y
    out.backward(case.dy)
    assert torch.equal(leaf.grad, case.dy)
    assert_matches(x.grad, reference(case.dy, case.x, case.factors, case.slots)[0], torch.float32)


def test_loading_another_slot_does_not_disturb_a_backward() -> None:
    case = make_case(torch.tensor([2, 2, 0], device=DEVICE), torch.float32)
    x = case.x.clone().requires_grad_()
    out = grouped_lora(case.y, x, case.factors, case.segments, grads=case.grads, backend="torch")
    first = int(case.factors.start[5])
    case.factors.a[0][first : first + 33] = 7.0
    out.backward(case.dy)
    assert_matches(x.grad, reference(case.dy, case.x, case.factors, case.slots)[0], torch.float32)


def test_a_recomputed_forward_gives_the_same_gradients() -> None:
    case = make_case(torch.tensor([2, -1, 0, 2], device=DEVICE), torch.float32)

    def layer(x: Tensor) -> Tensor:
        return grouped_lora(x.repeat(1, 2)[:, :98] * 2.0, x, case.factors, case.segments, backend="torch").tanh()

    direct, recomputed = (case.x.clone().requires_grad_() for _ in range(2))
    layer(direct).sum().backward()
    torch.utils.checkpoint.checkpoint(layer, recomputed, use_reentrant=False).sum().backward()
    assert torch.equal(direct.grad, recomputed.grad)
