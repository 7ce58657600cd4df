"""Attention over a cache in blocks in plain torch: the tokens are gathered, padded to the longest table, and masked."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def attend(
    q: Tensor, keys: Tensor, values: Tensor, tables: Tensor, lengths: Tensor, *, block: int, scale: float
) -> Tensor:
    """Return ``[B, Q, D]``; no loop over sequences, and as many torch calls for one as for many.

    A row's numbers come from its own tokens only, but their last bits may change with B, M and the number of threads:
    torch chooses how it sums by the padded shape.
    """
    sequences, heads, size = q.shape
    key_heads = keys.shape[1]
    within = torch.arange(block, device=q.device)
    rows = (tables.long()[:, :, None] * block + within).flatten(1)
    inside = torch.arange(rows.shape[1], device=q.device) < lengths[:, None]
    # What lies past a sequence's end may be NaN, and 0 · NaN is NaN: its first token is read there instead.
    rows = torch.where(inside, rows, rows[:, :1]).flatten()
    k, v = (t.index_select(0, rows).view(sequences, -1, key_heads, size).transpose(1, 2) for t in (keys, values))
    grouped = q.view(sequences, key_heads, heads // key_heads, size)
    out = scaled_dot_product_attention(grouped, k, v, attn_mask=inside[:, None, None, :], scale=scale)
    return out.reshape(sequences, heads, size)
