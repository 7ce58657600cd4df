"""A frozen causal LM that runs packed batches with adapters: the forward that everything in the house shares."""

from __future__ import annotations

from collections.abc import Callable

import torch
from mintbook_kernels import Factors, Segments
from torch import Tensor, nn

from mintbook.model.batch import PackedBatch, Piece
from mintbook.model.decode_graph import CudaCapture, DecodeGraphs, why_no_graphs
from mintbook.model.invariance import check_invariance, check_kernels
from mintbook.model.projection import AdapterPlan, attach
from mintbook.model.shared_inputs import shared_inputs
from mintbook.model.sites import linear_sites
from mintbook.model.slots import SlotBank
from mintbook.store.page import Page

LossOf = Callable[[Tensor], Tensor]


class GradientPage:
    """The gradients of one slot's adapter, in fp32 and in the layout of its page."""

    def __init__(self, page: Page, slot: int, bank: SlotBank) -> None:
        rows, width = page.tensor.shape
        widest = max(site.out_features for site in bank.sites)
        self._rows = torch.zeros((rows, max(width, widest)), dtype=torch.float32, device=bank.tensor.device)
        self.page = page.like(self._rows[:, :width])
        self.by_group = tuple(self._factors(slot, bank, group) for group in bank.groups)

    def clear(self) -> None:
        """Set every gradient to zero, in place."""
        self.page.tensor.zero_()

    def _factors(self, slot: int, bank: SlotBank, group: tuple[int, ...]) -> Factors | None:
        views = self.page.factors()
        ranks = dict(zip((site.name for site in self.page.sites), self.page.ranks, strict=True))
        sites = [bank.sites[index] for index in group]
        trained = [site for site in sites if site.name in views]
        if not trained:
            return None
        rank = torch.zeros((len(sites), bank.rows), dtype=torch.int32, device=self._rows.device)
        a, b = [], []
        for place, site in enumerate(sites):
            rank[place, slot] = ranks.get(site.name, 0)
            known = site in trained
            # A target that is not trained has rank 0: its columns are never touched, whichever they are.
            wide_a = views[site.name if known else trained[0].name][0]
            wide_b = views[site.name][1] if known else self._rows[:, : site.out_features]
            a.append(self._whole(wide_a))
            b.append(self._whole(wide_b))
        return Factors(
            a=tuple(a),
            b=tuple(b),
            start=torch.zeros(bank.rows, dtype=torch.int64, device=self._rows.device),
            rank=rank,
            scale=torch.ones((len(sites), bank.rows), device=self._rows.device),
        )

    def _whole(self, view: Tensor) -> Tensor:
        """Return a view of the page's columns with all its rows, those below a smaller rank too."""
        return self._rows.as_strided((self._rows.shape[0], view.shape[1]), self._rows.stride(), view.storage_offset())


TILE = 32
"""Rows of a product under ``batch_invariant``."""


class PackedModel:
    """The base with a slot bank attached to its linear layers.

    With ``batch_invariant`` no bit of a row's logits depends on the other rows of its batch; with ``packed_weights``
    decoding is faster on a CPU, at the price of memory (see `FrozenWeight`).
    """

    def __init__(
        self, model: nn.Module, *, slot_rows: int, batch_invariant: bool = False, packed_weights: bool = True
    ) -> None:
        weight = next(model.parameters())
        if batch_invariant:
            check_kernels(weight.device, weight.dtype)
        self.model = model
        self.device = weight.device
        self.batch_invariant = batch_invariant
        self.sites = linear_sites(model)
        groups = shared_inputs(model, self.sites, self._one_token)
        self.bank = SlotBank(self.sites, groups, rows=slot_rows, dtype=weight.dtype, device=weight.device)
        tile = TILE if batch_invariant else None
        self._port = attach(model, self.sites, groups, packed=packed_weights, tile=tile)
        self._trigger = torch.zeros(1, device=weight.device, requires_grad=True)
        if batch_invariant:
            check_invariance(self._port.weights)
        self.why_no_graphs = why_no_graphs(model)
        self.graphs = None if self.why_no_graphs else DecodeGraphs(self.bank, CudaCapture(self.device))

    @property
    def packed_bytes(self) -> int:
        """Bytes of the second copy of the base's weights."""
        return sum(weight.packed_bytes for weight in self._port.weights)

    @property
    def decode_steps(self) -> str:
        """How steps of decoding alone run: replayed, or launch by launch and why."""
        why = self.why_no_graphs or (self.graphs.failed if self.graphs is not None else None)
        return f"launch by launch: {why}" if why else "replayed from graphs"

    def logits(self, batch: PackedBatch, keep: Tensor) -> Tensor:
        """Return the logits ``[K, V]`` of the rows that ``keep [K]`` names, without gradients."""
        with torch.no_grad():
            if self.graphs is not None and batch.decode_only and batch.cache is not None:
                replayed = self.graphs.logits(batch, self._decode)
                if replayed is not None:
                    return replayed.index_select(0, keep)  # a copy: the next replay writes over it
            with self._port.open(self._plan(batch, None)):
                return self._forward(batch, keep)

    def backward(self, batch: PackedBatch, keep: Tensor, grads: GradientPage, loss_of: LossOf) -> Tensor:
        """Run a forward, ``loss_of(logits [K, V])`` and its backward, and return the loss.

        Adds to ``grads``, in place.
        """
        with torch.enable_grad(), self._port.open(self._plan(batch, grads)):
            loss = loss_of(self._forward(batch, keep))
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()

    def _decode(self, batch: PackedBatch, segments: Segments) -> Tensor:
        with torch.no_grad(), self._port.open(AdapterPlan(segments, self.bank.factors, decode=True)):
            return self._forward(batch, 0)

    def _plan(self, batch: PackedBatch, grads: GradientPage | None) -> AdapterPlan:
        return AdapterPlan(
            segments=self.bank.segments(batch.on_host.row_slots),
            factors=self.bank.factors,
            decode=grads is None and batch.decode_only,
            grads=grads.by_group if grads else None,
            trigger=self._trigger if grads else None,
        )

    def _forward(self, batch: PackedBatch, keep: Tensor | int) -> Tensor:
        out = self.model(
            input_ids=batch.tokens[None],
            position_ids=batch.positions[None],
            use_cache=False,
            logits_to_keep=keep,
            packed=batch,
        )
        logits: Tensor = out.logits[0]
        return logits

    def _one_token(self) -> None:
        with torch.no_grad():
            self._forward(
                PackedBatch.of([Piece([0])], device=self.device), torch.zeros(1, dtype=torch.int64, device=self.device)
            )
