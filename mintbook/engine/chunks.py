"""How prompts are cut into the chunks that steps read."""

from __future__ import annotations

TILE = 64
"""Tokens of a chunk where chunks are fixed; a multiple of a block, so that what is shared ends where a chunk ends."""


def chunk_end(read: int, end: int, budget: int, *, fixed: bool) -> int:
    """Return up to where a step reads a sequence of ``end`` tokens whose first ``read`` are read.

    A step has ``budget`` tokens of prompts left. Fixed chunks end at multiples of `TILE` whatever the budget is, so
    that their shapes depend on nothing but the prompt; one that has begun is read whole.

    >>> chunk_end(0, 200, 150, fixed=False), chunk_end(0, 200, 150, fixed=True), chunk_end(192, 200, 1, fixed=True)
    (150, 64, 200)
    """
    if budget <= 0:
        return read
    return min(end, (read // TILE + 1) * TILE if fixed else read + budget)
