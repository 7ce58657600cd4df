"""The oracle of the tests: autograd of the forward's reference, in fp32."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from mintbook_kernels.factors import Factors
from mintbook_kernels.grouped_lora.reference import grouped_lora


def lora_grad(dy: Tensor, x: Tensor, factors: Factors, slots: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return dx ``[T, H]``, J × dA ``[N, H]`` and J × dBᵀ ``[N, O_j]``, each 0 where nothing flows."""
    leaves = [tensor.detach().float().requires_grad_() for tensor in (x, *factors.a, *factors.b)]
    middle = 1 + factors.targets
    bank = SimpleNamespace(
        a=leaves[1:middle], b=leaves[middle:], start=factors.start, rank=factors.rank, scale=factors.scale
    )
    y = grouped_lora(torch.zeros(dy.shape, device=dy.device), leaves[0], bank, slots)  # type: ignore[arg-type]
    if y.requires_grad:
        gradients = torch.autograd.grad(y, leaves, dy.float(), materialize_grads=True)
    else:
        gradients = tuple(map(torch.zeros_like, leaves))
    return gradients[0], list(gradients[1:middle]), list(gradients[middle:])
