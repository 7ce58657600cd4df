"""The adapted layers: linears that share an input as one product, plus the update of each row's adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import torch
from mintbook_kernels import Factors, Segments, gathered_lora, grouped_lora
from torch import Tensor, nn

from mintbook.model.frozen_weight import FrozenWeight
from mintbook.store.page import Site


@dataclass(frozen=True, slots=True, eq=False)
class AdapterPlan:
    """What one forward needs to know about adapters.

    The sorted rows, each projection's factors, and where gradients go.
    """

    segments: Segments
    factors: Sequence[Factors]
    decode: bool = False
    grads: Sequence[Factors | None] | None = None
    trigger: Tensor | None = None


class AdapterPort:
    """Where the layers of one model find the plan of the forward that runs now.

    ``weights`` are those that they multiply with.
    """

    def __init__(self) -> None:
        self.plan: AdapterPlan | None = None
        self.weights: list[FrozenWeight] = []

    @contextmanager
    def open(self, plan: AdapterPlan | None) -> Iterator[None]:
        """Let every adapted layer use ``plan`` until the block ends; a backward belongs inside the block too."""
        before, self.plan = self.plan, plan
        try:
            yield
        finally:
            self.plan = before


class Projection:
    """``y[t] = W x[t] + s · B (A x[t])`` for the J linears that read one input, with the factors of row t's slot.

    ``weight`` is ``[ΣO, H]``, the J weights one below the other. Rows of slot −1 are the base's, bit for bit.
    """

    def __init__(self, weight: FrozenWeight, columns: Sequence[int], number: int, port: AdapterPort) -> None:
        self.weight = weight
        self.columns = tuple(columns)
        self.number = number
        self.port = port
        self._last: tuple[Tensor, AdapterPlan | None, Tensor] | None = None

    def part(self, x: Tensor, number: int) -> Tensor:
        """Return linear ``number``'s columns ``[…, O]`` for ``x [… , H]``, whose leading dimensions hold T rows.

        The first of the J computes all; the others find it, as long as they are given the same tensor.
        """
        plan = self.port.plan
        if len(self.columns) == 2:
            return self._all(x, plan)
        if self._last is None or self._last[0] is not x or self._last[1] is not plan:
            self._last = (x, plan, self._all(x, plan))
        y = self._last[2][..., self.columns[number] : self.columns[number + 1]]
        if number == len(self.columns) - 2:
            self._last = None
        return y

    def _all(self, x: Tensor, plan: AdapterPlan | None) -> Tensor:
        # The product is made on rows, not on [1, T, H]: the ops add to y in place, which autograd allows for no view.
        rows = x.reshape(-1, x.shape[-1])
        y = self.weight.times(rows)
        if plan is not None and not plan.segments.empty:
            factors = plan.factors[self.number]
            if plan.decode:
                y = gathered_lora(y, rows, factors, plan.segments)
            else:
                grads = plan.grads[self.number] if plan.grads is not None else None
                # Only a layer in training starts a gradient: below the lowest of them no backward runs at all.
                trigger = plan.trigger if grads is not None else None
                y = grouped_lora(y, rows, factors, plan.segments, grads=grads, trigger=trigger)
        return y.view(*x.shape[:-1], y.shape[-1])


class ProjectionPart(nn.Module):
    """One linear of a projection, in the place where the model's own code calls it."""

    def __init__(self, linear: nn.Linear, projection: Projection, number: int) -> None:
        super().__init__()
        self.linear = linear
        self.projection = projection
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[…, O]`` for ``x [… , H]``."""
        return self.projection.part(x, self.number)


class Unembedding(nn.Module):
    """The base's last linear, which no adapter changes."""

    def __init__(self, linear: nn.Linear, weight: FrozenWeight) -> None:
        super().__init__()
        self.linear = linear
        self.frozen = weight

    @property
    def weight(self) -> Tensor:
        """The linear's own, which may be the embedding's too."""
        return self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[…, O]`` for ``x [… , H]``."""
        y = self.frozen.times(x.reshape(-1, x.shape[-1]))
        return y.view(*x.shape[:-1], y.shape[-1])


def attach(
    model: nn.Module,
    sites: Sequence[Site],
    groups: Sequence[Sequence[int]],
    *,
    packed: bool = False,
    tile: int | None = None,
) -> AdapterPort:
    """Put projections in the place of the groups' linear layers, in place, and return the port they share.

    ``packed`` and ``tile`` are those of `FrozenWeight`. The weights of a group become row ranges of one matrix.
    """
    port = AdapterPort()

    def frozen(weight: Tensor, bias: Tensor | None) -> FrozenWeight:
        port.weights.append(FrozenWeight(weight, bias, packed=packed, tile=tile))
        return port.weights[-1]

    for number, group in enumerate(groups):
        linears: list[nn.Linear] = [model.get_submodule(sites[index].name) for index in group]  # type: ignore[misc]
        columns = tuple(accumulate((part.out_features for part in linears), initial=0))
        projection = Projection(frozen(*_fused(linears, columns)), columns, number, port)
        for place, (index, part) in enumerate(zip(group, linears, strict=True)):
            parent, _, child = sites[index].name.rpartition(".")
            setattr(model.get_submodule(parent), child, ProjectionPart(part, projection, place))
    head: nn.Linear = model.get_output_embeddings()  # type: ignore[operator]
    model.set_output_embeddings(Unembedding(head, frozen(head.weight, head.bias)))  # type: ignore[operator]
    return port


def _fused(linears: Sequence[nn.Linear], columns: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Return one weight ``[ΣO, H]`` and bias ``[ΣO]``, of which the linears' own become views."""
    if len(linears) == 1:
        return linears[0].weight, linears[0].bias
    weight = torch.cat([part.weight.data for part in linears])
    for part, start, end in zip(linears, columns, columns[1:], strict=False):
        part.weight.data = weight[start:end]
    if all(part.bias is None for part in linears):
        return weight, None
    bias = torch.cat([weight.new_zeros(part.out_features) if part.bias is None else part.bias.data for part in linears])
    for part, start, end in zip(linears, columns, columns[1:], strict=False):
        if part.bias is not None:
            part.bias.data = bias[start:end]
    return weight, bias
