"""AdamW over one adapter's page, with its own moments and step counter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mintbook.config import TrainConfig


@dataclass(slots=True, eq=False)
class AdamW:
    """The optimizer state of one adapter: moments ``[R, W]`` in fp32 and the number of steps they have seen.

    The step counter belongs to the state, not to the call: bias correction after a resume or a second training is that
    of one long training (Loshchilov & Hutter 2019, decoupled weight decay).
    """

    first: Tensor
    second: Tensor
    steps: int = 0

    @classmethod
    def fresh(cls, master: Tensor) -> AdamW:
        """Return the state before the first step for a page of this shape."""
        return cls(torch.zeros_like(master), torch.zeros_like(master))

    def step(self, master: Tensor, grad: Tensor, config: TrainConfig, learning_rate: float) -> None:
        """Change ``master`` and the state in place.

        m ← β₁m + (1−β₁)g, v ← β₂v + (1−β₂)g², θ ← θ − η·(m̂/(√v̂+ε) + λθ).
        """
        self.steps += 1
        self.first.lerp_(grad, 1 - config.beta1)
        self.second.mul_(config.beta2).addcmul_(grad, grad, value=1 - config.beta2)
        correction1 = 1 - config.beta1**self.steps
        correction2 = 1 - config.beta2**self.steps
        if config.weight_decay:
            master.mul_(1 - learning_rate * config.weight_decay)
        spread = self.second.sqrt().div_(math.sqrt(correction2)).add_(config.eps)
        master.addcdiv_(self.first, spread, value=-learning_rate / correction1)


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """Return the rate of optimizer step ``step`` (from 0): linear warm-up, then cosine to a tenth, or constant.

    The last step has a tenth of the rate, unless the warm-up takes all steps or there is only one.
    """
    warmup = round(config.warmup * config.steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "constant":
        return config.learning_rate
    falling = config.steps - warmup - 1
    done = (step - warmup) / falling if falling > 0 else float(warmup > 0)
    return config.learning_rate * (0.55 + 0.45 * math.cos(math.pi * min(1.0, done)))


def clip_(grad: Tensor, largest: float) -> float:
    """Scale ``grad`` in place so that its norm is at most ``largest`` (0: leave it) and return the norm it had."""
    norm = float(torch.linalg.vector_norm(grad))
    if largest and norm > largest:
        grad.mul_(largest / norm)
    return norm
