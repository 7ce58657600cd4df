"""What a residency has done and is doing, in numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mintbook.engine.prometheus import counter, gauge


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


def prometheus_text(counters: ResidencyCounters) -> str:
    """Return the counters in Prometheus' text exposition format, version 0.0.4."""
    c = counters
    hits = {'tier="slot"': c.slot_hits, 'tier="host"': c.host_hits}
    evictions = {'tier="slot"': c.evictions, 'tier="host"': c.host_evictions}
    lines = [
        *counter("adapter_hits", "Asks that found the adapter in a tier.", hits),
        *counter("adapter_store_reads", "Loads that read the adapter from the store.", c.store_reads),
        *counter("adapter_joined_loads", "Asks that joined a load that went on already.", c.joined),
        *counter("adapter_loads", "Adapters that came into a slot.", c.loads),
        *counter("adapter_failed_loads", "Loads that failed.", c.failed_loads),
        *counter("adapter_refusals", "Asks that were told to come again.", c.refusals),
        *counter("adapter_evictions", "Adapters that made room in a tier.", evictions),
        *gauge("adapter_loads_in_flight", "Loads that go on.", c.loads_in_flight),
        *gauge("adapter_loads_queued", "Loads that wait for their turn.", c.loads_queued),
        *gauge("adapters_hot", "Adapters in slots.", c.hot),
        *gauge("adapters_leased", "Adapters in slots that are in use.", c.leased),
        *gauge("adapters_warm", "Adapters in the host cache.", c.warm),
        *gauge("adapter_slot_bytes", "Bytes of slots that are taken.", c.slot_bytes),
        *gauge("adapter_host_bytes", "Bytes of the host cache that are taken.", c.host_bytes),
    ]
    return "\n".join(lines) + "\n"
