"""Attention over a packed batch, registered with transformers so that its own model code runs on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from mintbook.errors import BaseUnsupported
from mintbook.model.batch import PackedBatch

NAME = "mintbook_packed"
UNSUPPORTED = {
    "sliding_window": "a sliding attention window",
    "softcap": "soft-capped attention scores",
    "s_aux": "attention sinks",
    "position_bias": "a position bias in attention",
}


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: PackedBatch,
    scaling: float | None = None,
    dropout: float = 0.0,
    **model_options: Any,
) -> tuple[Tensor, None]:
    """Attend within each sequence of ``packed``, causally, to its cached tokens and its own.

    ``query [1, Q, T, D]``, ``key`` and ``value [1, K, T, D]`` (Q heads share K ≤ Q key-value heads) → ``[1, T, Q, D]``.
    New keys and values are written to the batch's cache, in place. Each sequence is a call of its own, so its bits do
    not depend on its neighbours. Raises `BaseUnsupported` for an option that this attention does not compute.
    """
    for option, meaning in UNSUPPORTED.items():
        if model_options.get(option) is not None:
            raise BaseUnsupported(
                f"This base uses {meaning} ({option}={model_options[option]!r:.60}), which the packed forward does not "
                "compute. Choose a base with plain causal attention."
            )
    layer: int = module.layer_idx  # type: ignore[assignment]
    out = []
    for piece, start, end in zip(packed.pieces, packed.bounds, packed.bounds[1:], strict=False):
        q, k, v = query[:, :, start:end], key[:, :, start:end], value[:, :, start:end]
        if packed.cache is not None and piece.table is not None:
            seen = piece.start + end - start
            new = piece.table.rows(piece.start, seen, packed.cache.device)
            packed.cache.write(layer, new, k[0].transpose(0, 1), v[0].transpose(0, 1))
            if piece.start:
                k, v = (t.transpose(0, 1)[None] for t in packed.cache.read(layer, piece.table.rows(0, seen, q.device)))
        out.append(_attend(q, k, v, scaling))
    return torch.cat(out, dim=2).transpose(1, 2), None


def _attend(q: Tensor, k: Tensor, v: Tensor, scaling: float | None) -> Tensor:
    new, seen = q.shape[2], k.shape[2]
    mask = None
    if 1 < new < seen:
        rows = torch.arange(seen - new, seen, device=q.device)[:, None]
        mask = torch.arange(seen, device=q.device)[None, :] <= rows
    return scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None and new > 1, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
    )


AttentionInterface.register(NAME, packed_attention)
