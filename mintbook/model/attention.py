"""Attention over a packed batch, registered with transformers so that its own model code runs on it."""

from __future__ import annotations

from typing import Any

import torch
from mintbook_kernels import paged_attention
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from mintbook.errors import BaseUnsupported
from mintbook.model.batch import PackedBatch
from mintbook.model.kv_cache import BLOCK, KVCache

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
    **model_options: Any,
) -> tuple[Tensor, None]:
    """Attend within each sequence of ``packed``, causally, to its cached tokens and its own.

    ``query [1, Q, T, D]``, ``key`` and ``value [1, K, T, D]`` (Q heads share K ≤ Q key-value heads) → ``[1, T, Q, D]``.
    New keys and values are written to the batch's cache, in place. Sequences that bring one token to the cache are one
    call together, in which no row's bits depend on the others; each other sequence is a call of its own. Raises
    `BaseUnsupported` for an option that this attention does not compute.
    """
    for option, meaning in UNSUPPORTED.items():
        if model_options.get(option) is not None:
            raise BaseUnsupported(
                f"This base uses {meaning} ({option}={model_options[option]!r:.60}), which the packed forward does not "
                "compute. Choose a base with plain causal attention."
            )
    scaling = model_options.get("scaling") or query.shape[-1] ** -0.5
    if packed.cache is None:
        spans = zip(packed.bounds, packed.bounds[1:], strict=False)
        parts = [_attend(query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], scaling) for a, b in spans]
        return torch.cat(parts, dim=2).transpose(1, 2), None
    layer: int = module.layer_idx  # type: ignore[assignment]
    packed.cache.write(layer, packed.write_rows, key[0].transpose(0, 1), value[0].transpose(0, 1))
    return _attend_to_cache(packed, packed.cache, layer, query, scaling)[None], None


def _attend_to_cache(packed: PackedBatch, cache: KVCache, layer: int, query: Tensor, scaling: float) -> Tensor:
    """Return ``[T, Q, D]``; the batch's own keys and values have been written."""
    keys, values = cache.layer(layer)
    rows = query[0].transpose(0, 1)
    if packed.decodes:
        decoding = rows if packed.decode_only else rows[packed.decode_rows]
        found = paged_attention(decoding, keys, values, packed.tables, packed.seen, block=BLOCK, scale=scaling)
        if packed.decode_only:
            return found
    out = rows.new_empty((*rows.shape[:2], values.shape[-1]))
    if packed.decodes:
        out[packed.decode_rows] = found
    for start, end, seen in packed.chunks:
        k, v = (t.transpose(0, 1)[None] for t in cache.read(layer, seen))
        out[start:end] = _attend(query[:, :, start:end], k, v, scaling)[0].transpose(0, 1)
    return out


def _attend(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
    """Return ``[1, Q, n, D]`` for the last n tokens of one sequence."""
    if q.device.type == "cpu" and torch.is_grad_enabled() and q.requires_grad:
        return _attend_by_products(q, k, v, scaling)
    new, seen = q.shape[2], k.shape[2]
    mask = None
    if 1 < new < seen:
        rows = torch.arange(seen - new, seen, device=q.device)[:, None]
        mask = torch.arange(seen, device=q.device)[None, :] <= rows
    return scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None and new > 1, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
    )


def _attend_by_products(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
    """Whole-sequence causal attention as two products and an fp32 softmax.

    The query heads of a key head share a product. For training on a CPU, where the backward of torch's fused attention
    is slow on short sequences: a step of 16 sequences and 805 tokens on the default base fell from 3.05 to 2.37
    CPU-seconds (bf16, one thread, AMX).
    """
    heads, new, size = q.shape[1:]
    shared = k.shape[1]
    scores = q.reshape(shared, heads // shared * new, size) @ k[0].transpose(1, 2) * scaling
    future = torch.ones(new, new, dtype=torch.bool, device=q.device).triu(1)
    scores = scores.view(shared, -1, new, new).masked_fill(future, float("-inf"))
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype)
    return (weights.view(shared, -1, new) @ v[0]).view(1, heads, new, -1)


AttentionInterface.register(NAME, packed_attention)
