"""The effect receipt: proof that an adapter changes the base, made when it is committed or imported."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mintbook.engine.engine import Engine
from mintbook.errors import AdapterError
from mintbook.model.batch import NO_ADAPTER
from mintbook.store.page import Page
from mintbook.store.revisions import Revision


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
    base, adapted = _answers(engine, slot, probe)
    p, q = torch.log_softmax(base, dim=-1), torch.log_softmax(adapted, dim=-1)
    return {
        "modules": len(page.sites),
        "nonzero_b": nonzero / entries,
        "update_norm": math.sqrt(max(0.0, squared)),
        "logit_shift": float((adapted - base).abs().max()),
        "probe_kl": float((p.exp() * (p - q)).sum()),
    }


def check_effect(engine: Engine, revision: Revision, slot: int, probe: tuple[int, ...]) -> float:
    """Return the largest logit shift of the adapter in ``slot`` against the base on the last token of ``probe``.

    Raises `AdapterError` when it is less than half of what the revision's receipt says: it does not answer as what it
    was when it was committed. A receipt without an effect on the probe promises none.
    """
    base, adapted = _answers(engine, slot, probe)
    shift, promised = float((adapted - base).abs().max()), float(revision.manifest.receipt.get("logit_shift", 0.0))
    if not shift >= promised / 2:
        raise AdapterError(
            f"{revision.reference} moves the base's logits by {shift:.3g} on the probe, and its receipt says "
            f"{promised:.3g}. Its weights are not in effect; train it again, or report this as a fault of mintbook."
        )
    return shift


def _answers(engine: Engine, slot: int, probe: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the logits ``[V]`` after the probe, of the base and of the adapter, in one batch."""
    last = len(probe) - 1
    base, adapted = engine.logits([probe, probe], [NO_ADAPTER, slot], start=[last, last])
    return base[0], adapted[0]
