"""Numbers for the device: all tables of a step in one copy, which nobody waits for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Table = NDArray[np.integer[Any]]

_ALIGN = 16
"""Bytes; Triton compiles for pointers that are multiples of it."""


def upload(tables: Sequence[Table], device: torch.device) -> tuple[Tensor, ...]:
    """Return the tables as tensors on the device: on a CPU without a copy, elsewhere in a single one.

    >>> [t.tolist() for t in upload([np.array([1, 2]), np.zeros((1, 3), np.int32)], torch.device("cpu"))]
    [[1, 2], [[0, 0, 0]]]
    """
    if device.type == "cpu":
        return tuple(map(torch.from_numpy, tables))
    return views(joined(tables, device).to(device, non_blocking=True), tables)


def joined(tables: Sequence[Table], device: torch.device) -> Tensor:
    """Return the bytes of the tables in host memory, one behind the other.

    For a GPU the memory is pinned; torch uses it again only when copies out of it are over.
    """
    together = torch.empty(_size(tables), dtype=torch.uint8, pin_memory=device.type == "cuda")
    there = together.numpy()
    for table, at in zip(tables, _places(tables), strict=True):
        there[at : at + table.nbytes] = np.ascontiguousarray(table).reshape(-1).view(np.uint8)
    return together


def views(together: Tensor, like: Iterable[Table]) -> tuple[Tensor, ...]:
    """Return the tables, of the shapes and types of ``like``, as views of the bytes that `joined` laid out."""
    tables = tuple(like)
    return tuple(
        together[at : at + table.nbytes].view(_TYPES[table.dtype.itemsize]).view(table.shape)
        for table, at in zip(tables, _places(tables), strict=True)
    )


_TYPES = {4: torch.int32, 8: torch.int64}


def _places(tables: Sequence[Table]) -> list[int]:
    places, at = [], 0
    for table in tables:
        places.append(at)
        at += _room(table)
    return places


def _size(tables: Sequence[Table]) -> int:
    return sum(map(_room, tables))


def _room(table: Table) -> int:
    return -(-prod(table.shape) * table.itemsize // _ALIGN) * _ALIGN
