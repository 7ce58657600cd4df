"""One measured number, and what it belongs to."""

from __future__ import annotations

from dataclasses import dataclass

EVERY = "every"
"""The case and the side of a number that belongs to a whole run."""


@dataclass(frozen=True, slots=True)
class Row:
    """``metric`` of one side in one case, such as the wall time of a step of ``peft`` in ``32x32``."""

    case: str
    side: str
    metric: str
    value: float
    unit: str
