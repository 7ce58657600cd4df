"""Count what the interpreted kernels do: programs, tiles, and every address that is read or written."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import numpy as np
import pytest
from triton.runtime import interpreter


@dataclass(eq=False)
class Traffic:
    """One launch."""

    kernel: str
    grid: tuple[int, ...]
    read: dict[int, int] = field(default_factory=dict)
    """Bytes of the number at each address; of blocks of floating-point numbers only, so tables are left out."""
    written: dict[int, int] = field(default_factory=dict)
    working: set[tuple[int, ...]] = field(default_factory=set)
    """The programs that came as far as a store."""
    computed: int = 0
    """Multiply-adds of the tiles, padding included."""

    @property
    def programs(self) -> int:
        return prod(self.grid)


def count(monkeypatch: pytest.MonkeyPatch) -> list[Traffic]:
    """Count every launch from here until the test ends; the kernels must be interpreted."""
    builder, executor, launches = interpreter.InterpreterBuilder, interpreter.GridExecutor, []
    load, store, dot = builder.create_masked_load, builder.create_masked_store, builder.create_dot
    execute = executor.__call__

    def note(into: dict[int, int], pointers, mask) -> None:
        if pointers.data.size > 1 and pointers.get_element_ty().is_floating():
            addresses = np.asarray(pointers.data)[np.broadcast_to(mask.data, pointers.data.shape)]
            size = pointers.get_element_ty().primitive_bitwidth // 8
            into.update(dict.fromkeys(addresses.tolist(), size))

    def counting_load(self, pointers, mask, *rest):
        note(launches[-1].read, pointers, mask)
        if launches[-1].kernel.startswith("gathered") and pointers.data.ndim == 2:
            launches[-1].computed += pointers.data.size  # no tl.dot: one multiply-add for each number of a factor
        return load(self, pointers, mask, *rest)

    def counting_store(self, pointers, value, mask, *rest):
        note(launches[-1].written, pointers, mask)
        launches[-1].working.add(self.grid_idx)
        return store(self, pointers, value, mask, *rest)

    def counting_dot(self, a, b, *rest):
        launches[-1].computed += a.data.shape[0] * a.data.shape[1] * b.data.shape[1]
        return dot(self, a, b, *rest)

    def counting_execute(self, *args, **options):
        launches.append(Traffic(self.fn.__name__, tuple(self.grid)))
        return execute(self, *args, **options)

    monkeypatch.setattr(builder, "create_masked_load", counting_load)
    monkeypatch.setattr(builder, "create_masked_store", counting_store)
    monkeypatch.setattr(builder, "create_dot", counting_dot)
    monkeypatch.setattr(executor, "__call__", counting_execute)
    return launches
