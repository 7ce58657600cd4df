"""What is launched grows neither with the adapters of a batch nor with the targets that share an input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lora_cases import DEVICE, Case, make_case
from mintbook_kernels import gathered_lora, grouped_lora, lora_grad
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import KernelInterface

OPS: dict[str, Callable[[Case, str], object]] = {
    "gathered_lora": lambda case, backend: gathered_lora(case.y, case.x, case.factors, case.segments, backend=backend),
    "grouped_lora": lambda case, backend: grouped_lora(case.y, case.x, case.factors, case.segments, backend=backend),
    "lora_grad": lambda case, backend: lora_grad(
        case.dy, case.x, case.factors, case.segments, case.grads, need_dx=True, backend=backend
    ),
}


class Calls(TorchDispatchMode):
    """Counts what torch is asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("op", "launches"), [("gathered_lora", 2), ("grouped_lora", 2), ("lora_grad", 5)])
@pytest.mark.parametrize(("slots", "widths"), [([2], (45,)), ([0, 2, 3, 4, 5, 7], (45,)), ([2, 4, 4], (45, 20, 33))])
def test_triton_launches_are_a_fixed_number(
    slots: list[int], widths: tuple[int, ...], op: str, launches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, seen = KernelInterface.__getitem__, []

    def counted(kernel: KernelInterface, grid: tuple[int, ...]) -> Any:
        seen.append(kernel)
        return at(kernel, grid)

    case = make_case(torch.tensor(slots, device=DEVICE), torch.float32, widths=widths)
    monkeypatch.setattr(KernelInterface, "__getitem__", counted)
    OPS[op](case, "triton")
    assert len(seen) == launches


@pytest.mark.parametrize("op", OPS)
def test_torch_calls_do_not_grow_with_the_adapters(op: str) -> None:
    counts = []
    for slots in ([0, 2, 7], [0, 2, 3, 7]):
        case = make_case(torch.tensor(slots, device=DEVICE), torch.float32)
        OPS[op](case, "torch")
        with Calls() as calls:
            OPS[op](case, "torch")
        counts.append(calls.count)
    assert counts[0] == counts[1] > 0
