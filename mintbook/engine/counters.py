"""What the engine has done and is doing, in numbers."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mintbook.engine.request import StopReason

Ending = StopReason | Literal["error"]
FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
NEXT_TOKEN_S = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
SPREAD = 8


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many values were at most each bound, not counting those of the bounds before; the last count is the rest."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """The engine at one moment; numbers of the past count from its start."""

    requests_waiting: int
    """Not begun: in line, or their adapter is still loading."""
    requests_loading: int
    """Of those that wait: their adapter is still loading."""
    requests_running: int
    requests_preempted: int
    """Set aside now, until there is room again."""
    finished: dict[Ending, int]
    """Ended requests by why they ended."""
    refused: int
    preemptions: int
    tokens_read: int
    """Tokens of prompts that went through the model."""
    tokens_from_prefixes: int
    """Tokens of prompts that were known already."""
    tokens_generated: int
    steps: int
    adapters_in_step: int
    """Distinct adapters in the last step."""
    kv_tokens_used: int
    """Held by running requests or kept prefixes."""
    kv_tokens_kept: int
    """Of those that are used: held by kept prefixes alone, and given up when anybody needs the room."""
    kv_tokens_free: int
    first_token_s: Histogram
    """Seconds from a request to its first token."""
    next_token_s: Histogram
    """Seconds from each token to the next of the same request."""

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain data."""
        return asdict(self)


@dataclass(slots=True)
class Timings:
    """A histogram that grows."""

    bounds: tuple[float, ...]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, seconds: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def histogram(self) -> Histogram:
        """Return what was counted so far."""
        return Histogram(self.bounds, tuple(self.counts), self.total)


@dataclass(slots=True)
class Tally:
    """What the loop counts as it goes."""

    finished: dict[Ending, int] = field(default_factory=dict)
    refused: int = 0
    tokens_read: int = 0
    tokens_generated: int = 0
    adapters_in_step: int = 0
    first_token: Timings = field(default_factory=lambda: Timings(FIRST_TOKEN_S))
    next_token: Timings = field(default_factory=lambda: Timings(NEXT_TOKEN_S))
    _last_end: float | None = None
    _between_ends_s: float = 1.0
    _refused_since: int = 0

    def refuse(self) -> float:
        """Count a refusal and return after how many seconds to ask again: one request's end for each that was refused.

        That is at most `SPREAD` ends. The time between two ends is that of the last ones, the later the weightier; one
        second before there are two.
        """
        self.refused += 1
        self._refused_since = min(self._refused_since + 1, SPREAD)
        return self._between_ends_s * self._refused_since

    def end(self, reason: Ending, now: float) -> None:
        """Count a request that ended at ``now`` seconds."""
        self.finished[reason] = self.finished.get(reason, 0) + 1
        self._refused_since = 0
        if self._last_end is not None:
            self._between_ends_s += 0.2 * (now - self._last_end - self._between_ends_s)
        self._last_end = now
