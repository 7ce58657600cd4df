"""Attention over a cache in blocks by the compiled op."""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from mintbook_kernels.native.library import library

CALL = struct.Struct("@20qd3qd")
"""``Call`` of paged_attention.c."""
LARGEST_SIZE = 512
"""The largest head size."""
LEAST_NS = 15_000.0
"""A batch that takes one thread less than this is not shared out: waking the others costs about as much."""


def attend(
    q: Tensor, keys: Tensor, values: Tensor, tables: Tensor, lengths: Tensor, *, block: int, scale: float
) -> Tensor:
    """Return ``[B, Q, D]``; a row's bits depend on its own query and tokens and the machine's instructions alone.

    Raises `IndexError` when a sequence is longer than its table or the table names a block that is not there, and
    `ValueError` for heads above `LARGEST_SIZE`.
    """
    if q.shape[2] > LARGEST_SIZE:
        raise ValueError(f"The compiled op takes heads of up to {LARGEST_SIZE} numbers. Ask for 'torch'.")
    op = library()
    sequences, heads, size = q.shape
    capacity, key_heads, _ = keys.shape
    blocks, entries = capacity // block, tables.shape[1]
    out = q.new_empty((sequences, heads, size))
    call = CALL.pack(
        *(q.data_ptr(), *q.stride()[:2], keys.data_ptr(), *keys.stride()[:2], values.data_ptr(), *values.stride()[:2]),
        *(tables.data_ptr(), tables.stride(0), lengths.data_ptr(), out.data_ptr()),
        *(sequences, heads, key_heads, size, block, blocks, entries, scale),
        *(q.dtype is torch.bfloat16, op.level, torch.get_num_threads(), LEAST_NS),
    )
    misfit = op.paged_attention(call, op.parallel)
    if misfit >= 0:
        raise IndexError(
            f"Sequence {misfit} must have from 1 to {entries * block} tokens, in blocks 0 to {blocks - 1} of the "
            f"cache; it has {int(lengths[misfit])}, in the blocks {tables[misfit].tolist()}."
        )
    return out
