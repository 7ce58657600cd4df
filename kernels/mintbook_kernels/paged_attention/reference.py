"""The oracle of the tests: one sequence after the other, in fp32."""

from __future__ import annotations

import torch
from torch import Tensor


def paged_attention(
    q: Tensor, keys: Tensor, values: Tensor, tables: Tensor, lengths: Tensor, *, block: int, scale: float
) -> Tensor:
    """Return ``o[b, h] = softmax(scale · q[b, h] Kᵀ) V`` ``[B, Q, D]`` in fp32, over the first lengths[b] tokens."""
    out = []
    for query, table, length in zip(q.float(), tables.long(), lengths.tolist(), strict=True):
        token = torch.arange(length, device=q.device)
        rows = table[token // block] * block + token % block
        k, v = (t[rows].float().repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (keys, values))
        weights = (scale * torch.einsum("hd,thd->ht", query, k)).softmax(dim=-1)
        out.append(torch.einsum("ht,thd->hd", weights, v))
    return torch.stack(out)
