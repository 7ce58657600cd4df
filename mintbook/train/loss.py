"""What training minimises."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class SftLoss:
    """Cross-entropy on the examples' target tokens plus a term that holds the adapter to the base on anchor tokens.

    Over the target rows ``−Σ log q(target) / targets_in_step``; over the anchor rows
    ``Σ KL(p ‖ q) / anchors_in_step``, p the base's distribution and q the adapter's, both with all tokens outside the
    base's likeliest 64 taken together as one event (a lower bound of the full KL that needs no second forward). The
    denominators count a whole optimizer step, so that accumulated passes sum to one mean.
    """

    targets: Tensor
    """``[N]``."""
    top_ids: Tensor
    """``[A, 64]``: the base's likeliest tokens at every anchor row."""
    top_logprobs: Tensor
    targets_in_step: int
    anchors_in_step: int

    def terms(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return (cross-entropy, KL) for ``logits [N + A, V]``: the targets' rows first, then the anchors'."""
        count = len(self.targets)
        logq = torch.log_softmax(logits.float(), dim=-1)
        task = -logq[:count].gather(1, self.targets[:, None]).sum() / max(1, self.targets_in_step)
        p, logq_top = self.top_logprobs.exp(), logq[count:].gather(1, self.top_ids)
        inside = (p * (self.top_logprobs - logq_top)).sum()
        p_rest, q_rest = _rest(p), _rest(logq_top.exp())
        kl = (inside + (p_rest * (p_rest.log() - q_rest.log())).sum()) / max(1, self.anchors_in_step)
        return task, kl


def _rest(top: Tensor) -> Tensor:
    """Return 1 − Σ over the last dimension, kept above fp32's rounding of the sum."""
    return (1 - top.sum(dim=-1)).clamp(min=1e-6)
