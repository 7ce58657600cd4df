"""The α that makes PEFT compute a given scale: PEFT keeps α and one rule for all modules, a page keeps the scales."""

from __future__ import annotations

import math
from collections.abc import Sequence

_TIDY_DIGITS = 9


def alphas_of(ranks: Sequence[int], scales: Sequence[float]) -> tuple[bool, list[float]]:
    """Return ``use_rslora`` and an α for each module, so that α / r, or α / √r under rsLoRA, is its scale.

    Short decimals are tried first, so that what a person once wrote comes back; then the doubles around s · r and
    s · √r. Division by r skips some doubles: where neither rule meets every scale exactly, α = s · r, whose quotient
    differs from the scale by at most a unit in the last place.

    >>> alphas_of([12, 12], [32 / 12, 32 / 12])
    (False, [32.0, 32.0])
    >>> alphas_of([12], [32 / 12**0.5])
    (True, [32.0])
    """
    pairs = list(zip(ranks, scales, strict=True))
    for tidy in (True, False):
        for rooted in (False, True):
            found = [_alpha(math.sqrt(rank) if rooted else rank, scale, tidy=tidy) for rank, scale in pairs]
            exact = [alpha for alpha in found if alpha is not None]
            if len(exact) == len(pairs):
                return rooted, exact
    return False, [rank * scale for rank, scale in pairs]


def _alpha(divisor: float, scale: float, *, tidy: bool) -> float | None:
    product = scale * divisor
    if tidy:
        candidates = [float(f"{product:.{_TIDY_DIGITS}g}")]
    else:
        candidates = [product, math.nextafter(product, math.inf), math.nextafter(product, -math.inf)]
    return next((alpha for alpha in candidates if alpha / divisor == scale), None)
