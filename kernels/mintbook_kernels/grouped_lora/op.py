"""Grouped rows: the update of prefill and training, with its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mintbook_kernels.checks import check_grads, check_operands, check_triton_dtype
from mintbook_kernels.dispatch import backend_name
from mintbook_kernels.factors import Factors
from mintbook_kernels.grouped_lora import torch_path
from mintbook_kernels.lora_grad.op import implementation
from mintbook_kernels.native import rows as native
from mintbook_kernels.segments import Segments


def grouped_lora(
    y: Tensor,
    x: Tensor,
    factors: Factors,
    segments: Segments,
    grads: Factors | None = None,
    trigger: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Return ``y_j[t] += s_j · (x[t] A_jᵀ) B_jᵀ`` for the J targets that share x, where many rows share an adapter.

    ``x [T, H]``, ``y [T, ΣO]`` with ``y_j = y[:, columns[j] : columns[j + 1]]``. ``y`` is changed in place and
    returned; only where autograd forbids that (under grad, a view, or a leaf that requires grad) the result is a new
    tensor. Rows without an adapter keep their bits; a zero adapter adds exact 0.

    With grad enabled and ``x`` or ``trigger`` requiring grad, the backward passes ``dy`` on to y, returns dx, and
    *adds* dA_j and dB_jᵀ in place to ``grads.a[j] [N', H]`` and ``grads.b[j] [N', O_j]``, at the rank-rows
    ``grads.start`` names; where ``grads.rank[j, s]`` is 0, slot s is frozen at target j. ``trigger`` is a one-element
    tensor requiring grad: it makes the backward run where x does not require grad (the first layer); its own gradient
    is 0. The backward reads the factors' memory as it is then: the slots of this batch must not be written in between,
    other slots may.

    Raises `ValueError` for operands that do not fit, and for ``grads`` that no backward would reach.
    """
    check_operands(y, x, factors, segments)
    if grads is not None:
        check_grads(grads, factors)
    if segments.empty:
        return y
    name = backend_name(x, backend)
    if not torch.is_grad_enabled():
        _add_only(y, x, factors, segments, name)
        return y
    if x.requires_grad or (trigger is not None and trigger.requires_grad):
        is_view = y._base is not None  # noqa: SLF001 (torch has no public name for it)
        in_place = not is_view and not (y.is_leaf and y.requires_grad)
        result: Tensor = _GroupedLora.apply(y, x, trigger, factors, segments, grads, in_place, name)  # type: ignore[no-untyped-call]
        return result
    if grads is not None:
        raise ValueError(
            "grads are given, but neither x nor trigger requires grad, so no backward would fill them. Pass a trigger, "
            "or call under torch.no_grad()."
        )
    with torch.no_grad():
        _add_only(y, x, factors, segments, name)
    return y


def _add_only(y: Tensor, x: Tensor, factors: Factors, segments: Segments, name: str) -> None:
    if name == "native":
        native.add_update(y, x, factors, segments)
    else:
        _add_update(y, x, factors, segments, name)


def _add_update(y: Tensor, x: Tensor, factors: Factors, segments: Segments, name: str) -> Tensor | None:
    if name != "triton":
        return torch_path.add_update(y, x, factors, segments)
    check_triton_dtype(x)
    from mintbook_kernels.grouped_lora.triton_kernel import add_update

    return add_update(y, x, factors, segments)


class _GroupedLora(torch.autograd.Function):
    """The update as a node of autograd; the factors are no inputs of it, because their gradients go into a bank."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        trigger: Tensor | None,
        factors: Factors,
        segments: Segments,
        grads: Factors | None,
        in_place: bool,  # noqa: FBT001 (apply takes no keywords)
        name: str,
    ) -> Tensor:
        if in_place:
            ctx.mark_dirty(y)
        else:
            y = y.clone()
        h = _add_update(y, x, factors, segments, name)
        # The factors are kept as they are, not saved: loading another slot of the bank changes its version counter.
        ctx.save_for_backward(x, h, trigger)
        ctx.factors, ctx.segments, ctx.grads, ctx.name = factors, segments, grads, name
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, h, trigger = ctx.saved_tensors
        need_y, need_dx, need_trigger = ctx.needs_input_grad[:3]
        dx = None
        if h is not None and (need_dx or ctx.grads is not None):
            add_gradients = implementation(ctx.name, x)
            dx = add_gradients(dy.contiguous(), x, h, ctx.factors, ctx.segments, ctx.grads, need_dx=need_dx)
        nothing = torch.zeros_like(trigger) if need_trigger else None
        return (dy if need_y else None, dx, nothing, None, None, None, None, None)
