"""What a residency has done and is doing, in numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidencyCounters:
    """A residency at one moment; numbers of the past count from its start."""

    slot_hits: int
    """Asks for a revision that was in a slot."""
    joined: int
    """Asks that joined a load which went on already."""
    host_hits: int
    """Loads that found their page in the host cache."""
    store_reads: int
    """Loads that read their page from the store."""
    loads: int
    """Pages that came into a slot."""
    failed_loads: int
    refusals: int
    """Asks that were told to come again."""
    evictions: int
    """Slots that made room."""
    host_evictions: int
    """Pages of the host cache that made room."""
    loads_in_flight: int
    loads_queued: int
    hot: int
    """Revisions in slots."""
    leased: int
    """Of those: in use now."""
    warm: int
    """Pages in the host cache."""
    slot_bytes: int
    """Of slots that are taken, those of trainings among them."""
    host_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain data."""
        return asdict(self)


@dataclass(slots=True)
class Tally:
    """What is counted as it happens; the residency's lock guards it."""

    slot_hits: int = 0
    joined: int = 0
    host_hits: int = 0
    store_reads: int = 0
    loads: int = 0
    failed_loads: int = 0
    refusals: int = 0
    evictions: int = 0
