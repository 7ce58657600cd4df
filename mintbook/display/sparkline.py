"""A curve in one line of text."""

from __future__ import annotations

import math
from collections.abc import Sequence

_LEVELS = "▁▂▃▄▅▆▇█"
_GAP = "·"


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """Return ``values`` as at most ``width`` characters from ``▁`` (lowest) to ``█`` (highest).

    Longer series are averaged in equal parts. A part without a finite value is ``·``; a constant series stays in the
    middle; an empty one is the empty string.

    >>> sparkline([3.5, 2.0, 1.0, 0.2, 0.1]), sparkline([1.0, 1.0]), sparkline([1.0, float("nan"), 2.0])
    ('█▅▃▁▁', '▄▄', '▁·█')
    """
    parts = _parts(values, width)
    known = [part for part in parts if part is not None]
    if not known:
        return _GAP * len(parts)
    low, high = min(known), max(known)
    return "".join(_GAP if part is None else _level(part, low, high) for part in parts)


def _level(value: float, low: float, high: float) -> str:
    if high <= low:
        return _LEVELS[3]
    return _LEVELS[min(7, int((value - low) / (high - low) * 8))]


def _parts(values: Sequence[float], width: int) -> list[float | None]:
    count = min(len(values), width)
    parts: list[float | None] = []
    for index in range(count):
        chunk = values[index * len(values) // count : (index + 1) * len(values) // count]
        finite = [value for value in chunk if math.isfinite(value)]
        parts.append(sum(finite) / len(finite) if finite else None)
    return parts
