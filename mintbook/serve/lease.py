"""What is known about one revision's weights on a base, and the right to the slot they are in."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

from mintbook.serve.load_times import LoadTimes
from mintbook.store.revisions import Revision

Readiness = Literal["registered", "prewarming", "ready"]


@dataclass(slots=True, eq=False)
class Entry:
    """One set of weights, under the name it was last asked for by; its residency's lock guards it."""

    revision: Revision
    slot: int | None = None
    loading: bool = False
    holds: int = 0
    """Why its rank-rows are spoken for: leases, among them a pin's, and a load that goes on."""
    waiters: list[SlotLease] = field(default_factory=list)
    pin: SlotLease | None = None
    prewarms: int = 0
    """How many are getting it ready."""
    ready: bool = False
    """In a slot, and its effect was seen there."""
    loads: int = 0
    times: LoadTimes | None = None
    """Of the last load."""
    last_used: float = 0.0
    """Seconds since the epoch."""

    @property
    def key(self) -> str:
        """What it computes."""
        return self.revision.weights_digest

    @property
    def rows(self) -> int:
        """Rank-rows that it takes in the slot bank."""
        return self.revision.manifest.rank

    @property
    def leases(self) -> int:
        """Leases of requests and callers."""
        return self.holds - self.loading - (self.pin is not None)

    @property
    def readiness(self) -> Readiness:
        """How far it is on the way to answering without a load."""
        return "ready" if self.ready else "prewarming" if self.prewarms else "registered"


class SlotLease:
    """The right to a revision's slot, until `end`; ``slot`` has its number once it is loaded, or why it could not be.

    A failed load ends its leases. Use it in a ``with`` block to wait for the slot and give it back.
    """

    def __init__(self, entry: Entry, give_back: Callable[[SlotLease], None]) -> None:
        self.slot: Future[int] = Future()
        self.entry = entry
        self.ended = False
        self._give_back = give_back

    def result(self) -> int:
        """Wait for the slot; an error or an interrupt ends the lease."""
        try:
            return self.slot.result()
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Give the slot back; it stays loaded until its room is needed. A second call does nothing."""
        self._give_back(self)

    def __enter__(self) -> int:
        """Wait for the slot and return its number."""
        return self.result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the lease."""
        self.end()
