"""A frozen causal LM that runs packed batches with adapters: the forward that everything in the house shares."""

from __future__ import annotations

from collections.abc import Callable

import torch
from mintbook_kernels import Factors
from torch import Tensor, nn

from mintbook.model.batch import PackedBatch
from mintbook.model.lora_linear import AdapterPlan, attach
from mintbook.model.sites import linear_sites
from mintbook.model.slots import SlotBank
from mintbook.store.page import Page

LossOf = Callable[[Tensor], Tensor]


class GradientPage:
    """The gradients of one slot's adapter, in fp32 and in the layout of its page."""

    def __init__(self, page: Page, slot: int, bank: SlotBank) -> None:
        self.page = page.like(torch.zeros(page.tensor.shape, dtype=torch.float32, device=bank.tensor.device))
        views = self.page.factors()
        ranks = dict(zip((site.name for site in page.sites), page.ranks, strict=True))
        self.by_site: list[Factors | None] = []
        for site in bank.sites:
            if site.name not in views:
                self.by_site.append(None)
                continue
            a, b = views[site.name]
            rank = torch.zeros(bank.rows, dtype=torch.int32, device=a.device)
            rank[slot] = ranks[site.name]
            zeros = torch.zeros(bank.rows, dtype=torch.int64, device=a.device)
            self.by_site.append(Factors(a=a, b=b, start=zeros, rank=rank, scale=torch.ones(bank.rows, device=a.device)))

    def clear(self) -> None:
        """Set every gradient to zero, in place."""
        self.page.tensor.zero_()


class PackedModel:
    """The base with a slot bank attached to its linear layers."""

    def __init__(self, model: nn.Module, *, slot_rows: int) -> None:
        weight = next(model.parameters())
        self.model = model
        self.device = weight.device
        self.sites = linear_sites(model)
        self.bank = SlotBank(self.sites, rows=slot_rows, dtype=weight.dtype, device=weight.device)
        self._port = attach(model, self.sites)
        self._trigger = torch.zeros(1, device=weight.device, requires_grad=True)

    def logits(self, batch: PackedBatch, keep: Tensor) -> Tensor:
        """Return the logits ``[K, V]`` of the rows that ``keep [K]`` names, without gradients."""
        with torch.no_grad(), self._port.open(self._plan(batch, None)):
            return self._forward(batch, keep)

    def backward(self, batch: PackedBatch, keep: Tensor, grads: GradientPage, loss_of: LossOf) -> Tensor:
        """Run a forward, ``loss_of(logits [K, V])`` and its backward, and return the loss.

        Adds to ``grads``, in place.
        """
        with torch.enable_grad(), self._port.open(self._plan(batch, grads)):
            loss = loss_of(self._forward(batch, keep))
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()

    def _plan(self, batch: PackedBatch, grads: GradientPage | None) -> AdapterPlan:
        return AdapterPlan(
            segments=self.bank.segments(batch.row_slots),
            factors=self.bank.factors,
            decode=grads is None and batch.decode_only,
            grads=grads.by_site if grads else None,
            trigger=self._trigger if grads else None,
        )

    def _forward(self, batch: PackedBatch, keep: Tensor) -> Tensor:
        out = self.model(
            input_ids=batch.tokens[None],
            position_ids=batch.positions[None],
            use_cache=False,
            logits_to_keep=keep,
            packed=batch,
        )
        logits: Tensor = out.logits[0]
        return logits
