"""The loss: cross-entropy as torch has it, and a KL that is zero for the base and bounded by the full one."""

from __future__ import annotations

import pytest
import torch

from mintbook.train.loss import SftLoss


def make(logits: torch.Tensor, base: torch.Tensor, targets: torch.Tensor, top: int) -> SftLoss:
    found = torch.log_softmax(base, dim=-1).topk(top)
    return SftLoss(targets, found.indices, found.values, targets_in_step=len(targets), anchors_in_step=len(base))


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(7, 50, generator=torch.Generator().manual_seed(0)) * 3


def test_the_terms_are_what_torch_computes(logits: torch.Tensor) -> None:
    base = torch.randn(4, 50, generator=torch.Generator().manual_seed(1)) * 3
    targets = torch.tensor([3, 4, 5])
    task, kl = make(logits, base, targets, 50).terms(logits)
    assert task == pytest.approx(torch.nn.functional.cross_entropy(logits[:3], targets).item())
    p, q = torch.log_softmax(base, -1), torch.log_softmax(logits[3:], -1)
    full = torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean").item()
    assert kl.item() == pytest.approx(full, rel=1e-3)
    fewer = make(logits, base, targets, 10).terms(logits)[1].item()
    assert 0.5 * full < fewer < full


def test_the_base_itself_has_no_kl_and_no_gradient(logits: torch.Tensor) -> None:
    given = logits.clone().requires_grad_()
    kl = make(logits, logits[3:], torch.tensor([0, 1, 2]), 16).terms(given)[1]
    kl.backward()
    assert kl.item() == pytest.approx(0.0, abs=1e-6)
    assert given.grad is not None
    assert given.grad.abs().max() < 1e-6


def test_without_anchors_there_is_only_the_task(logits: torch.Tensor) -> None:
    empty = torch.empty((0, 1))
    loss = SftLoss(torch.arange(7), empty.long(), empty, targets_in_step=7, anchors_in_step=0)
    task, kl = loss.terms(logits)
    assert kl.item() == 0
    assert torch.isfinite(task)
