"""What every side is asked, and what it gives back: a batch of prompts, its answers and their times."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from mintbook.bench.timing import Timing


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts of equal length, each for adapter number ``adapters[i]`` or, with ``None``, for the base.

    After its first token every row is continued by ``steps`` more; all choices are greedy.
    """

    prompts: tuple[tuple[int, ...], ...]
    adapters: tuple[int | None, ...]
    steps: int

    @classmethod
    def random(cls, size: int, length: int, *, adapters: Sequence[int] = (), steps: int, vocabulary: int) -> Self:
        """Return ``size`` random prompts; the adapters are dealt out in turn, and none are the base."""
        dice = random.Random(size * 1000 + length)
        prompts = tuple(tuple(dice.randrange(5, vocabulary) for _ in range(length)) for _ in range(size))
        dealt = tuple(adapters[i % len(adapters)] if adapters else None for i in range(size))
        return cls(prompts, dealt, steps)


@dataclass(frozen=True, slots=True)
class Answer:
    """``prefill``: until every row has its first token. ``step``: one of the ``steps`` that follow.

    ``tokens`` has ``steps + 1`` per row.
    """

    prefill: Timing
    step: Timing
    tokens: tuple[tuple[int, ...], ...]


class Side(Protocol):
    """Something that answers batches: the engine, or a peer."""

    @property
    def name(self) -> str:
        """What it is called in rows and tables."""

    def answer(self, batch: Batch) -> Answer:
        """Answer a batch and say how long it took."""
