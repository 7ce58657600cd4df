"""Interleaved rounds: every side is measured in every round, so that what disturbs one disturbs its rivals too."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Self, TypeVar

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds on the wall, and of all processors that this process has used."""

    wall_s: float
    cpu_s: float

    @classmethod
    def now(cls) -> Self:
        """Read both clocks."""
        return cls(time.perf_counter(), time.process_time())

    def since(self, before: Timing, *, parts: int = 1) -> Timing:
        """Return what has passed since ``before``, of ``parts`` equal parts each."""
        return Timing((self.wall_s - before.wall_s) / parts, (self.cpu_s - before.cpu_s) / parts)

    def times(self, factor: float) -> Timing:
        """Return ``factor`` times as long."""
        return Timing(self.wall_s * factor, self.cpu_s * factor)


def interleaved(
    measures: Mapping[Key, Callable[[], Timing]], rounds: int, say: Callable[[str], None]
) -> dict[Key, list[Timing]]:
    """Take each measure once in every round, forwards and backwards in turn, and return each one's rounds in order."""
    found: dict[Key, list[Timing]] = {key: [] for key in measures}
    for number in range(rounds):
        for key in list(measures)[:: -1 if number % 2 else 1]:
            say(f"round {number + 1} of {rounds}: {key}")
            found[key].append(measures[key]())
    return found


def wall_ms(timings: Sequence[Timing]) -> float:
    """Return the median wall time in milliseconds."""
    return median(timing.wall_s for timing in timings) * 1e3


def cpu_ms(timings: Sequence[Timing]) -> float:
    """Return the median processor time in milliseconds."""
    return median(timing.cpu_s for timing in timings) * 1e3


def wall_ratio(timings: Sequence[Timing], over: Sequence[Timing]) -> float:
    """Return the median over rounds of wall time ÷ wall time in the same round.

    >>> round(wall_ratio([Timing(2, 1), Timing(9, 1), Timing(3, 1)], [Timing(1, 1), Timing(3, 1), Timing(1, 1)]), 3)
    3.0
    """
    return median(a.wall_s / b.wall_s for a, b in zip(timings, over, strict=True))


def cpu_ratio(timings: Sequence[Timing], over: Sequence[Timing]) -> float:
    """Return the median over rounds of processor time ÷ processor time in the same round."""
    return median(a.cpu_s / b.cpu_s for a, b in zip(timings, over, strict=True))
