"""The oracle of the tests: one row after the other, in fp32."""

from __future__ import annotations

import torch
from torch import Tensor

from mintbook_kernels.factors import Factors


def grouped_lora(y: Tensor, x: Tensor, factors: Factors, slots: Tensor) -> Tensor:
    """Return ``y[t, columns of j] + s_j · (x[t] A_jᵀ) B_jᵀ`` for every row ``[T, ΣO]``, in fp32 and differentiable."""
    rows = list(y.float())
    for t, slot in enumerate(slots.tolist()):
        if slot >= 0:
            updates = []
            for a, b, rank, scale in zip(factors.a, factors.b, factors.rank, factors.scale, strict=True):
                its = slice(int(factors.start[slot]), int(factors.start[slot]) + int(rank[slot]))
                updates.append(scale[slot] * ((x[t].float() @ a[its].float().T) @ b[its].float()))
            rows[t] = rows[t] + torch.cat(updates)
    return torch.stack(rows)
