"""The gradients of grouped rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mintbook_kernels.checks import check_grads, check_operands, check_triton_dtype
from mintbook_kernels.dispatch import backend_name
from mintbook_kernels.factors import Factors
from mintbook_kernels.lora_grad import torch_path
from mintbook_kernels.segments import Segments


def lora_grad(
    dy: Tensor,
    x: Tensor,
    factors: Factors,
    segments: Segments,
    grads: Factors | None,
    *,
    need_dx: bool,
    backend: str | None = None,
) -> Tensor | None:
    """Add the gradients of ``y_j[t] += s_j · (x[t] A_jᵀ) B_jᵀ`` to ``grads`` in place; return dx where asked for.

    For ``x [T, H]``, ``dy [T, ΣO]`` with ``dy_j = dy[:, columns[j] : columns[j + 1]]``: ``dh_j = s_j · dy_j B_j``,
    ``dx = Σ_j dh_j A_j [T, H]``, ``dA_j += dh_jᵀ x``, ``dB_jᵀ += s_j · h_jᵀ dy_j``. dx is 0 for rows without an
    adapter; ``None`` without ``need_dx``. Sums are in fp32 and in a fixed order: two calls give the same bits. The
    backward of `grouped_lora` does this with the h that its forward kept; here it is computed again.
    """
    check_operands(dy, x, factors, segments, y_name="dy")
    if grads is not None:
        check_grads(grads, factors)
    dx = None
    if not segments.empty:
        name = backend_name(x, backend)
        with torch.no_grad():
            dx = implementation(name, x)(dy, x, None, factors, segments, grads, need_dx=need_dx)
    return torch.zeros_like(x) if dx is None and need_dx else dx


def implementation(name: str, x: Tensor) -> Callable[..., Tensor | None]:
    """Return the backend's ``add_gradients(dy, x, h, factors, segments, grads, *, need_dx)``, as in torch_path.py."""
    if name != "triton":
        return torch_path.add_gradients
    check_triton_dtype(x)
    from mintbook_kernels.lora_grad.triton_kernel import add_gradients

    return add_gradients
