"""The oracle of the tests: one row after the other, in fp32."""

from __future__ import annotations

import torch
from torch import Tensor

from mintbook_kernels.factors import Factors


def grouped_lora(y: Tensor, x: Tensor, factors: Factors, slots: Tensor) -> Tensor:
    """Return ``y[t] + s · (x[t] Aᵀ) Bᵀ`` for every row ``[T, O]``, in fp32 and differentiable."""
    rows = list(y.float())
    for t, slot in enumerate(slots.tolist()):
        if slot >= 0:
            start, rank = int(factors.start[slot]), int(factors.rank[slot])
            a, b = factors.a[start : start + rank].float(), factors.b[start : start + rank].float()
            rows[t] = rows[t] + factors.scale[slot] * ((x[t].float() @ a.T) @ b)
    return torch.stack(rows)
