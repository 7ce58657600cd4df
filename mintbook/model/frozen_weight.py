"""A weight of the frozen base, and the product of rows with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad


class FrozenWeight:
    """``x [T, H] · Wᵀ + b`` with a weight ``[O, H]`` that never changes.

    On a CPU, bf16 products of few rows spend much of their time on bringing the weight into the layout that the matrix
    units read. With ``packed`` a second copy is kept in that layout, for forwards without gradients.

    With ``tile`` a product has exactly that many rows. It may round differently in another shape; in one shape a row's
    bits do not depend on the other rows, nor on its place among them (`check_invariance` makes sure of it), so that
    fixed tiles make a row independent of what else is in the batch.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, packed: bool = False, tile: int | None = None) -> None:
        self.weight = weight
        self.bias = bias
        self.tile = tile
        self.packed = _packed(weight) if packed else None

    @property
    def packed_bytes(self) -> int:
        """Bytes of the second copy."""
        return self.weight.numel() * self.weight.element_size() if self.packed is not None else 0

    def times(self, rows: Tensor) -> Tensor:
        """Return ``[T, O]`` for ``rows [T, H]``, in memory of its own."""
        if torch.is_grad_enabled() and rows.requires_grad:
            return linear(rows, self.weight, self.bias)
        if self.tile is None:
            return self._product(rows)
        padded = pad(rows, (0, 0, 0, -rows.shape[0] % self.tile))
        return torch.cat([self._product(part) for part in torch.split(padded, self.tile)])[: rows.shape[0]]

    def _product(self, rows: Tensor) -> Tensor:
        if self.packed is None:
            return linear(rows, self.weight, self.bias)
        found: Tensor = _OPS[1](rows, self.packed, self.bias, "none", [], "")
        return found


def _packed(weight: Tensor) -> Tensor | None:
    """Return the weight in oneDNN's layout, or ``None`` where this torch or this CPU has none for it."""
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16 or None in _OPS:
        return None
    pack, _, supported = _OPS
    found: Tensor | None = pack(weight.detach(), None) if supported() else None
    return found


# The ops that torch.compile emits for a frozen model. They are not public: a torch that lacks one goes without.
_NAMES = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
_OPS: list[Any] = [getattr(torch.ops.mkldnn, name, None) for name in _NAMES]
