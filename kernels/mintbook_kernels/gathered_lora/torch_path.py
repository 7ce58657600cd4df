"""Gathered rows in plain torch."""

from __future__ import annotations

from torch import Tensor

from mintbook_kernels.factors import Factors
from mintbook_kernels.grouped_lora import torch_path as grouped
from mintbook_kernels.segments import Segments


def add_update(y: Tensor, x: Tensor, factors: Factors, segments: Segments) -> None:
    """Add the update to ``y [T, ΣO]`` in place.

    Masked dense, as for grouped rows: on a CPU the product against all active rank-rows costs less than gathering the
    factors of every row (see LOG.md).
    """
    grouped.add_update(y, x, factors, segments)
