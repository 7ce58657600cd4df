# Triton's decorators and kernel arguments carry no types.
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-incomplete-defs=False
"""Attention over a cache in blocks in Triton: one program for each sequence and up to 16 heads of one key head."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

HEADS = 16
"""Query heads of a program; `tl.dot` takes no fewer, and the heads that are missing cost no memory traffic."""


@dataclass(frozen=True, slots=True)
class Tile:
    """The tokens that a program reads at a time, and the warps and loop stages that do it."""

    tokens: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, Any]:
        """How to compile, a·b + c as one instruction."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


LARGEST_SIZE = 512
# By the bytes of a padded head. Not yet measured on a GPU: these spill no register on any target (resources.csv).
TILES = {128: Tile(64, 4, 2), 256: Tile(32, 4, 2), 512: Tile(32, 4, 3), 2048: Tile(16, 4, 1)}


def tile_for(padded_size: int, itemsize: int) -> Tile:
    """Return the first tile whose bound holds a padded head; raise `ValueError` for heads larger than any tile's."""
    if padded_size > LARGEST_SIZE:
        raise ValueError(f"The Triton kernel takes heads of up to {LARGEST_SIZE} numbers. Ask for 'torch'.")
    return next(tile for bound, tile in TILES.items() if padded_size * itemsize <= bound)


@triton.jit
def paged_attention_kernel(
    q,
    keys,
    values,
    tables,
    lengths,
    out,
    scale_log2,
    sharing,
    size,
    q_row,
    q_head,
    key_row,
    key_head,
    value_row,
    value_head,
    table_row,
    out_row,
    out_head,
    PAGE: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out[b, h] = Σ_t w[t] · v[t] / Σ_t w[t], w[t] = 2^(scale_log2 · q[b, h] · k[t] − the largest so far)."""
    b = tl.program_id(0).to(tl.int64)
    shared = tl.program_id(1).to(tl.int64)
    g = tl.program_id(2) * BLOCK_G + tl.arange(0, BLOCK_G)
    d = tl.arange(0, BLOCK_D)
    in_head = d < size
    head = shared * sharing + g
    mine = (g < sharing)[:, None] & in_head[None, :]
    query = tl.load(q + b * q_row + head[:, None] * q_head + d[None, :], mask=mine, other=0.0)
    length = tl.load(lengths + b)
    most = tl.full((BLOCK_G,), float("-inf"), dtype=tl.float32)
    divisor = tl.zeros((BLOCK_G,), dtype=tl.float32)
    sums = tl.zeros((BLOCK_G, BLOCK_D), dtype=tl.float32)
    for first in range(0, length, BLOCK_T):
        t = first + tl.arange(0, BLOCK_T)
        inside = t < length
        block = tl.load(tables + b * table_row + t // PAGE, mask=inside, other=0).to(tl.int64)
        row = block * PAGE + t % PAGE
        readable = inside[:, None] & in_head[None, :]
        k = tl.load(keys + shared * key_head + row[:, None] * key_row + d[None, :], mask=readable, other=0.0)
        v = tl.load(values + shared * value_head + row[:, None] * value_row + d[None, :], mask=readable, other=0.0)
        scores = tl.dot(query, tl.trans(k), input_precision="ieee") * scale_log2
        scores = tl.where(inside[None, :], scores, float("-inf"))
        larger = tl.maximum(most, tl.max(scores, axis=1))
        kept = tl.exp2(most - larger)
        weights = tl.exp2(scores - larger[:, None])
        divisor = divisor * kept + tl.sum(weights, axis=1)
        sums = sums * kept[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        most = larger
    result = sums / divisor[:, None]
    tl.store(out + b * out_row + head[:, None] * out_head + d[None, :], result.to(query.dtype), mask=mine)


def attend(
    q: Tensor, keys: Tensor, values: Tensor, tables: Tensor, lengths: Tensor, *, block: int, scale: float
) -> Tensor:
    """Return ``[B, Q, D]``. The grid does not depend on the lengths, and nothing is read on the host."""
    sequences, heads, size = q.shape
    key_heads = keys.shape[1]
    sharing = heads // key_heads
    padded = max(16, triton.next_power_of_2(size))
    tile = tile_for(padded, q.element_size())
    out = torch.empty((sequences, heads, size), dtype=q.dtype, device=q.device)
    paged_attention_kernel[(sequences, key_heads, triton.cdiv(sharing, HEADS))](
        *(q, keys, values, tables, lengths, out, scale * math.log2(math.e), sharing, size),
        *(*q.stride()[:2], *keys.stride()[:2], *values.stride()[:2], tables.stride(0), *out.stride()[:2]),
        PAGE=block,
        BLOCK_G=HEADS,
        BLOCK_T=tile.tokens,
        BLOCK_D=padded,
        **tile.options,
    )
    return out
