"""The adapted layer: the base's linear plus the update of whichever adapter each row belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from mintbook_kernels import Factors, Segments, gathered_lora, grouped_lora
from torch import Tensor, nn

from mintbook.store.page import Site


@dataclass(frozen=True, slots=True, eq=False)
class AdapterPlan:
    """What one forward needs to know about adapters: the sorted rows, each layer's factors, and where gradients go."""

    segments: Segments
    factors: Sequence[Factors]
    decode: bool = False
    grads: Sequence[Factors | None] | None = None
    trigger: Tensor | None = None


class AdapterPort:
    """Where the layers of one model find the plan of the forward that runs now."""

    def __init__(self) -> None:
        self.plan: AdapterPlan | None = None

    @contextmanager
    def open(self, plan: AdapterPlan | None) -> Iterator[None]:
        """Let every adapted layer use ``plan`` until the block ends; a backward belongs inside the block too."""
        before, self.plan = self.plan, plan
        try:
            yield
        finally:
            self.plan = before


class LoraLinear(nn.Module):
    """``y[t] = W x[t] + s · B (A x[t])`` with the factors of row t's slot.

    Rows of slot −1 are the base's, bit for bit.
    """

    def __init__(self, linear: nn.Linear, index: int, port: AdapterPort) -> None:
        super().__init__()
        self.linear = linear
        self.index = index
        self.port = port

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[…, O]`` for ``x [… , H]`` whose leading dimensions hold the batch's T rows."""
        plan = self.port.plan
        # The product is made on rows, not on [1, T, H]: the ops add to y in place, which autograd allows for no view.
        rows = x.reshape(-1, x.shape[-1])
        y: Tensor = self.linear(rows)
        if plan is not None and not plan.segments.empty:
            factors = plan.factors[self.index]
            if plan.decode:
                y = gathered_lora(y, rows, factors, plan.segments)
            else:
                grads = plan.grads[self.index] if plan.grads is not None else None
                # Only a layer in training starts a gradient: below the lowest of them no backward runs at all.
                trigger = plan.trigger if grads is not None else None
                y = grouped_lora(y, rows, factors, plan.segments, grads=grads, trigger=trigger)
        return y.view(*x.shape[:-1], y.shape[-1])


def attach(model: nn.Module, sites: Sequence[Site]) -> AdapterPort:
    """Put a `LoraLinear` in the place of every site's linear layer, in place, and return the port they share."""
    port = AdapterPort()
    for index, site in enumerate(sites):
        parent, _, child = site.name.rpartition(".")
        holder = model.get_submodule(parent)
        setattr(holder, child, LoraLinear(getattr(holder, child), index, port))
    return port
