"""One pass of loads: every adapter of a list comes into a slot, as many at a time as the engine allows."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from mintbook.errors import MintbookError
from mintbook.resident import Resident
from mintbook.serve.lease import SlotLease
from mintbook.serve.load_times import STAGES
from mintbook.store.revisions import Revision
from mintbook.store.store import Store


@dataclass(frozen=True, slots=True)
class LoadPass:
    """When each adapter was in its slot, in the order of asking, and what that took."""

    began: float
    marks: tuple[float, ...]
    slots: tuple[int, ...]
    cpu_s: float
    """Of all threads, per load."""
    stages: dict[str, float]
    """Median seconds of each stage."""

    @property
    def per_s(self) -> float:
        """Adapters per second."""
        return len(self.marks) / (self.marks[-1] - self.began)

    def last_over_first(self, edge: int) -> float:
        """Return the seconds of the last ``edge`` loads ÷ those of the first.

        >>> LoadPass(0.0, (1.0, 2.0, 4.0), (0, 1, 2), 0.0, {}).last_over_first(1)
        2.0
        """
        return (self.marks[-1] - self.marks[-1 - edge]) / (self.marks[edge - 1] - self.began)


def load_all(resident: Resident, store: Store, revisions: Sequence[Revision]) -> LoadPass:
    """Load revisions that are in no slot; raise `MintbookError` when one was, or was loaded more than once."""
    residency, config = resident.residency, resident.config
    together = config.loads_in_flight + min(config.load_queue, config.loads_in_flight)
    asked: deque[SlotLease] = deque()
    marks, slots = [], []
    cpu, began = time.process_time(), time.perf_counter()
    for number in range(len(revisions) + together):
        if number >= together or number >= len(revisions):
            if not asked:
                break
            with asked.popleft() as slot:
                marks.append(time.perf_counter())
                slots.append(slot)
        if number < len(revisions):
            asked.append(residency.lease(revisions[number], store))
    cpu = time.process_time() - cpu
    found = residency.residents()
    times = [one.times.to_dict() for one in found if one.times is not None]
    loads = residency.counters().loads
    if not len(times) == len(set(slots)) == len(revisions) == loads:
        raise MintbookError(
            f"{len(revisions)} adapters made {loads} loads into {len(set(slots))} slots. No row was written; this is a "
            "fault of mintbook, please report it."
        )
    stages = {stage: median(one[stage] for one in times) for stage in STAGES}
    return LoadPass(began, tuple(marks), tuple(slots), cpu / len(revisions), stages)
