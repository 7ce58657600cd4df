"""What the stages of a load took."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

STAGES = ("resolve", "queue", "fetch", "build", "register", "activate")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadTimes:
    """Seconds that one load spent in each stage."""

    resolve: float
    """Finding the file of the weights in the base's precision."""
    queue: float
    """Waiting for its turn among other loads."""
    fetch: float
    """Reading the file."""
    build: float
    """Checking its bytes and making the page."""
    register: float
    """Taking the page into the host cache."""
    activate: float
    """Waiting for the engine to be between two steps, and copying the page into a slot."""

    @property
    def total(self) -> float:
        """Seconds from the asking to the slot."""
        return sum(self.to_dict().values())

    def to_dict(self) -> dict[str, float]:
        """Return the stages as plain data."""
        return asdict(self)


class Stopwatch:
    """Counts time towards the stage that ends next."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Count the time since the last lap towards ``stage``."""
        now = time.perf_counter()
        self._seconds[stage] += now - self._last
        self._last = now

    def times(self) -> LoadTimes:
        """Return what was counted so far."""
        return LoadTimes(**self._seconds)
