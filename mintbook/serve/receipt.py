"""The effect receipt: proof that an adapter changes the base, made when it is committed or imported."""

from __future__ import annotations

import math
from typing import Any

import torch

from mintbook.engine.engine import Engine
from mintbook.model.batch import NO_ADAPTER
from mintbook.store.page import Page


def effect_receipt(engine: Engine, page: Page, slot: int, probe: tuple[int, ...]) -> dict[str, Any]:
    """Return what the adapter in ``slot`` does, as plain data.

    ``modules`` adapted, ``nonzero_b`` (share of B's entries that are not 0), ``update_norm`` (‖ΔW‖_F over all modules,
    from ‖B A‖² = ⟨BᵀB, AAᵀ⟩), and on the last token of ``probe`` the largest logit shift against the base in the same
    batch and KL(base ‖ adapter) in nats.
    """
    nonzero = entries = 0
    squared = 0.0
    for (a, b), scale in zip(page.factors().values(), page.scales, strict=True):
        a64, b64 = a.double(), b.double()
        squared += scale**2 * float(((b64 @ b64.T) * (a64 @ a64.T)).sum())
        nonzero += int(torch.count_nonzero(b))
        entries += b.numel()
    last = len(probe) - 1
    base, adapted = (rows[0] for rows in engine.logits([probe, probe], [NO_ADAPTER, slot], start=[last, last]))
    p, q = torch.log_softmax(base, dim=-1), torch.log_softmax(adapted, dim=-1)
    return {
        "modules": len(page.sites),
        "nonzero_b": nonzero / entries,
        "update_norm": math.sqrt(max(0.0, squared)),
        "logit_shift": float((adapted - base).abs().max()),
        "probe_kl": float((p.exp() * (p - q)).sum()),
    }
