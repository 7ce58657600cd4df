"""Which linear layers of a base read the same tensor: found by running it once and looking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from mintbook.store.page import Site


def shared_inputs(model: nn.Module, sites: Sequence[Site], run: Callable[[], object]) -> tuple[tuple[int, ...], ...]:
    """Return the sites as groups of indices; each group's layers belong to one parent and read one tensor.

    ``run`` runs the model once, as it will run. A layer joins the group before it when both are called with the same
    tensor, one right after the other (q, k and v; gate and up). A layer that is not called exactly once stays alone.
    """
    calls: list[tuple[int, int]] = []
    kept: list[Tensor] = []  # so that no later tensor can have the identity of an earlier one

    def note(index: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            kept.append(inputs[0])
            calls.append((index, id(inputs[0])))

        return hook

    hooks = [model.get_submodule(s.name).register_forward_pre_hook(note(i)) for i, s in enumerate(sites)]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return _grouped(sites, calls)


def _grouped(sites: Sequence[Site], calls: Sequence[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
    count: dict[int, int] = {}
    for index, _ in calls:
        count[index] = count.get(index, 0) + 1
    groups: list[list[int]] = []
    last: tuple[int, str] | None = None
    for index, tensor in calls:
        here = (tensor, sites[index].name.rpartition(".")[0])
        if count[index] > 1:
            last = None
            continue
        if here == last:
            groups[-1].append(index)
        else:
            groups.append([index])
        last = here
    groups += [[index] for index in range(len(sites)) if count.get(index, 0) != 1]
    return tuple(tuple(group) for group in groups)
