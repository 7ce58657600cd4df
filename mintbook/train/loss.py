"""What training minimises."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class SftLoss:
    """Cross-entropy on the examples' target tokens plus a KL term on anchor tokens.

    Over the target rows, ``−Σ log p(target) / targets_in_step``; over the anchor rows,
    ``weight · Σ KL(base ‖ adapter) / anchors_in_step`` with the full distributions of both. The denominators count a whole
    optimizer step, so that accumulated passes sum to one mean. Keeps the two terms' values after a call.
    """

    targets: Tensor
    base_logprobs: Tensor
    weight: float
    targets_in_step: int
    anchors_in_step: int

    def terms(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return (cross-entropy, KL) for ``logits [K, V]``: rows of the targets first, then the anchors' rows."""
        count = len(self.targets)
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        task = -logprobs[:count].gather(1, self.targets[:, None]).sum() / max(1, self.targets_in_step)
        base = self.base_logprobs
        kl = (base.exp() * (base - logprobs[count:])).sum() / max(1, self.anchors_in_step)
        return task, kl
