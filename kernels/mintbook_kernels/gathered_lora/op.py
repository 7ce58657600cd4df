"""Gathered rows: the update of decode, one row for each request."""

from __future__ import annotations

import torch
from torch import Tensor

from mintbook_kernels.checks import check_operands, check_triton_dtype
from mintbook_kernels.dispatch import backend_name
from mintbook_kernels.factors import Factors
from mintbook_kernels.gathered_lora import torch_path
from mintbook_kernels.native import rows as native
from mintbook_kernels.segments import Segments


def gathered_lora(y: Tensor, x: Tensor, factors: Factors, segments: Segments, *, backend: str | None = None) -> Tensor:
    """Return ``y_j[t] += s_j · (x[t] A_jᵀ) B_jᵀ`` for the J targets that share x, where few rows share an adapter.

    ``x [T, H]``, ``y [T, ΣO]`` with ``y_j = y[:, columns[j] : columns[j + 1]]``. ``y`` is changed in place and
    returned; rows without an adapter keep their bits, and a zero adapter adds exact 0. There is no gradient: raises
    `ValueError` when x requires grad and grad is enabled, and for operands that do not fit.
    """
    check_operands(y, x, factors, segments)
    if torch.is_grad_enabled() and x.requires_grad:
        raise ValueError(
            "gathered_lora has no gradient, but x requires grad. Call grouped_lora, or use torch.no_grad()."
        )
    if segments.empty:
        return y
    name = backend_name(x, backend)
    if segments.replayed and name != "triton":
        raise ValueError(f"Segments made for_replay are for Triton; the backend is {name!r}. Use Segments.of.")
    if name == "native":
        native.add_update(y, x, factors, segments)
        return y
    with torch.no_grad():
        if name == "torch":
            torch_path.add_update(y, x, factors, segments)
            return y
        check_triton_dtype(x)
        from mintbook_kernels.gathered_lora.triton_kernel import add_update

        add_update(y, x, factors, segments)
    return y
