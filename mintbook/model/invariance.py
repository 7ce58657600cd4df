"""Whether this machine's matrix products keep a row's bits when the other rows change."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from mintbook_kernels import backend
from torch import Tensor

from mintbook.errors import BaseUnsupported, ConfigError
from mintbook.model.frozen_weight import FrozenWeight


def check_kernels(device: torch.device, dtype: torch.dtype) -> None:
    """Raise `ConfigError` unless the op runs that keeps a row's bits in every batch: the compiled one, on a CPU.

    On a GPU prefill and decode round differently, in tiles that follow the largest rank in the batch; plain torch
    chooses how it sums by the shape of the whole batch.
    """
    found = backend(device, dtype=dtype)
    if found.name != "native":
        raise ConfigError(
            "batch_invariant needs the compiled op for CPUs, and here the kernels are "
            f"{found.name} ({found.reason}). Open the session without batch_invariant."
        )


def check_invariance(weights: Iterable[FrozenWeight]) -> None:
    """Raise `BaseUnsupported` unless products of whole tiles give a row the same bits wherever it stands.

    Every shape of weight ``[O, H]`` is tried once: with the rows in every rotated order, and beside rows of zeros.
    """
    seen: set[tuple[torch.Size, torch.dtype]] = set()
    for frozen in weights:
        weight, tile = frozen.weight, frozen.tile or 1
        if (weight.shape, weight.dtype) in seen:
            continue
        seen.add((weight.shape, weight.dtype))
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn((tile, weight.shape[1]), generator=generator).to(weight)
        expected = frozen.times(rows)
        for shift in range(1, tile):
            _check(frozen.times(rows.roll(shift, 0)), expected.roll(shift, 0), weight, tile)
        alone = torch.zeros_like(rows)
        alone[tile // 2] = rows[tile // 2]
        _check(frozen.times(alone)[tile // 2], expected[tile // 2], weight, tile)


def _check(found: Tensor, expected: Tensor, weight: Tensor, tile: int) -> None:
    if not torch.equal(found, expected):
        raise BaseUnsupported(
            f"batch_invariant needs products whose rows do not influence each other's bits; on this machine a product "
            f"of {tile} rows with a weight of {list(weight.shape)} in {str(weight.dtype).removeprefix('torch.')} has "
            "rows whose bits depend on their place. Open the session without batch_invariant."
        )
