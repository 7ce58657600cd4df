"""The oracle of the tests: autograd of the forward's reference, in fp32."""

from __future__ import annotations

import torch
from torch import Tensor

from mintbook_kernels.factors import Factors
from mintbook_kernels.grouped_lora.reference import grouped_lora


def lora_grad(dy: Tensor, x: Tensor, factors: Factors, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return dx ``[T, H]``, dA ``[N, H]`` and dBᵀ ``[N, O]``, each 0 where nothing flows."""
    leaves = [tensor.detach().float().requires_grad_() for tensor in (x, factors.a, factors.b)]
    bank = Factors(leaves[1], leaves[2], factors.start, factors.rank, factors.scale)
    y = grouped_lora(torch.zeros(dy.shape, device=dy.device), leaves[0], bank, slots)
    if not y.requires_grad:
        return torch.zeros_like(leaves[0]), torch.zeros_like(leaves[1]), torch.zeros_like(leaves[2])
    dx, da, db = torch.autograd.grad(y, leaves, dy.float(), materialize_grads=True)
    return dx, da, db
