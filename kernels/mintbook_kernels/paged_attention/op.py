"""Attention of decode: one query row for each sequence, over a key-value cache in blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from mintbook_kernels.checks import check_triton_dtype
from mintbook_kernels.dispatch import backend as choose_backend
from mintbook_kernels.paged_attention import native, torch_path


def paged_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    lengths: Tensor,
    *,
    block: int,
    scale: float,
    backend: str | None = None,
) -> Tensor:
    """Return ``o[b, h] = softmax(scale · q[b, h] Kᵀ) V`` ``[B, Q, D]`` over the first lengths[b] tokens of sequence b.

    ``q [B, Q, D]`` has one row for each sequence; ``keys`` and ``values [C, K, D]`` are one layer's cache of
    ``C // block`` blocks, and Q / K heads side by side share a key head. ``tables [B, M]`` int32 names each sequence's
    blocks in order, of which the first ``ceil(length / block)`` are read; ``lengths [B]`` int32 ≥ 1. Softmax and sums
    are in fp32. No token of another sequence is read. With the backends ``native`` and ``triton`` a row's bits depend
    neither on the other rows, nor on B, M, the place of its blocks or the number of threads.

    There is no gradient: raises `ValueError` when an operand requires grad and grad is enabled, and for operands that
    do not fit.
    """
    _check(q, keys, values, tables, lengths, block)
    if not q.shape[0]:
        return torch.empty_like(q, memory_format=torch.contiguous_format)
    name = choose_backend(q.device, backend, q.dtype).name
    if name == "native" and (backend or q.shape[2] <= native.LARGEST_SIZE):
        return native.attend(q, keys, values, tables, lengths, block=block, scale=scale)
    if name == "triton":
        check_triton_dtype(q)
        from mintbook_kernels.paged_attention.triton_kernel import attend

        return attend(q, keys, values, tables, lengths, block=block, scale=scale)
    return torch_path.attend(q, keys, values, tables, lengths, block=block, scale=scale)


def _check(q: Tensor, keys: Tensor, values: Tensor, tables: Tensor, lengths: Tensor, block: int) -> None:
    """Raise `ValueError` for what does not fit; written out, because a decode step passes here once for each layer."""
    sequences, heads, size = q.shape if q.ndim == 3 else (-1, -1, -1)
    shape = keys.shape
    if (
        len(shape) != 3
        or values.shape != shape
        or shape[2] != size
        or shape[1] < 1
        or heads % shape[1]
        or tables.ndim != 2
        or tables.shape[0] != sequences
        or lengths.shape != (sequences,)
        or block < 1
    ):
        raise ValueError(
            f"paged_attention takes q [B, Q, D], keys and values [C, K, D], Q a multiple of K, tables [B, M] and "
            f"lengths [B], and blocks of 1 token or more; they are {list(q.shape)}, {list(shape)}, "
            f"{list(values.shape)}, {list(tables.shape)}, {list(lengths.shape)} and {block}."
        )
    if not q.dtype == keys.dtype == values.dtype or not tables.dtype == lengths.dtype == torch.int32:
        raise ValueError(
            f"paged_attention takes q, keys and values of one precision and int32 tables and lengths; they are "
            f"{q.dtype}, {keys.dtype}, {values.dtype}, {tables.dtype} and {lengths.dtype}."
        )
    if not q.device == keys.device == values.device == tables.device == lengths.device:
        raise ValueError(
            f"paged_attention takes tensors of one device; they are on {q.device}, {keys.device}, {values.device}, "
            f"{tables.device} and {lengths.device}."
        )
    if not q.stride(2) == keys.stride(2) == values.stride(2) == tables.stride(1) == lengths.stride(0) == 1:
        _check_strides(q, keys, values, tables, lengths)
    if torch.is_grad_enabled() and (q.requires_grad or keys.requires_grad or values.requires_grad):
        raise ValueError("paged_attention has no gradient, but an operand requires grad. Use torch.no_grad().")


def _check_strides(*operands: Tensor) -> None:
    """Raise `ValueError` unless the last dimension of each lies side by side; that of 1 number or none does."""
    if any(operand.stride(-1) != 1 and operand.shape[-1] > 1 for operand in operands):
        raise ValueError("The numbers of one head, one table and the lengths must lie side by side (last stride 1).")
