"""One revision as the residency knows it, and all of them as a frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import polars
from polars._typing import PolarsDataType

from mintbook.serve.lease import Entry, Readiness
from mintbook.serve.load_times import STAGES, LoadTimes

State = Literal["hot", "warm", "loading", "registered"]

SCHEMA: dict[str, PolarsDataType] = {
    "revision": polars.String,
    "digest": polars.String,
    "state": polars.String,
    "readiness": polars.String,
    "slot": polars.Int64,
    "rank_rows": polars.Int64,
    "bytes": polars.Int64,
    "leases": polars.Int64,
    "pinned": polars.String,
    "last_used": polars.Datetime("us", "UTC"),
    "loads": polars.Int64,
    **{f"{stage}_s": polars.Float64 for stage in STAGES},
}
"""Columns of the frame; the last ones are the stages of the last load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """One set of weights, by the name it was last asked for."""

    revision: str
    digest: str
    """Of the weights."""
    state: State
    """``hot`` in a slot, ``loading`` on its way there, ``warm`` in the host cache, ``registered`` in the store only."""
    readiness: Readiness
    slot: int | None
    rank_rows: int
    bytes: int
    """What it takes in a slot, or would."""
    leases: int
    pinned: str
    """``slot``, ``memory``, ``slot, memory`` or nothing."""
    last_used: datetime | None
    loads: int
    times: LoadTimes | None
    """Of the last load; None for one that came from a training, or not at all."""

    def to_dict(self) -> dict[str, Any]:
        """Return the resident as plain data."""
        return asdict(self)


def resident_of(entry: Entry, row_bytes: int, *, warm: bool, pinned_warm: bool) -> Resident:
    """Return what an entry is now; ``warm`` is whether the host cache has it."""
    state: State = "hot" if entry.slot is not None else "loading" if entry.loading else "warm" if warm else "registered"
    pinned = ["slot"] * (entry.pin is not None) + ["memory"] * pinned_warm
    return Resident(
        revision=entry.revision.reference,
        digest=entry.key,
        state=state,
        readiness=entry.readiness,
        slot=entry.slot,
        rank_rows=entry.rows,
        bytes=entry.rows * row_bytes,
        leases=entry.leases,
        pinned=", ".join(pinned),
        last_used=datetime.fromtimestamp(entry.last_used, UTC) if entry.last_used else None,
        loads=entry.loads,
        times=entry.times,
    )


def residents_frame(residents: Sequence[Resident]) -> polars.DataFrame:
    """Return one row per resident."""
    rows = []
    for resident in residents:
        row = {name: getattr(resident, name) for name in SCHEMA if not name.endswith("_s")}
        times = resident.times.to_dict() if resident.times is not None else {}
        rows.append({**row, **{f"{stage}_s": times.get(stage) for stage in STAGES}})
    return polars.DataFrame(rows, schema=SCHEMA)
