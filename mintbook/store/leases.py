"""Leases: at most one open training session per record, across the processes of this host."""

from __future__ import annotations

import json
import sqlite3
import uuid
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Self

from mintbook.errors import RecordLeased
from mintbook.store.clock import utc_now
from mintbook.store.database import Database
from mintbook.store.process import Process
from mintbook.store.records import Records, record_id


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to train one record; released on leaving its ``with`` block, and lost when the process dies."""

    record: str
    token: str
    process: Process
    since: str
    _database: Database = field(repr=False, compare=False)

    def release(self) -> None:
        """Let others train the record; a second call does nothing."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM lease WHERE token = ?", (self.token,))

    def __enter__(self) -> Self:
        """Return the lease."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lease."""
        self.release()


class Leases:
    """The leases of a store."""

    def __init__(self, database: Database, records: Records) -> None:
        self._database = database
        self._records = records

    def take(self, name: str, *, take_over: bool) -> Lease:
        """Write a lease of the record; raise `RecordLeased` while another is held by a living process."""
        lease = Lease(name, uuid.uuid4().hex, Process.current(), utc_now(), self._database)
        with self._database.transaction() as connection:
            record = record_id(connection, name)
            if record is None:
                raise self._records.unknown(name)
            if not take_over:
                check_lease(connection, record, name, None)
            connection.execute(
                "INSERT OR REPLACE INTO lease (record, token, process, since) VALUES (?, ?, ?, ?)",
                (record, lease.token, json.dumps(asdict(lease.process)), lease.since),
            )
        return lease


def check_lease(connection: sqlite3.Connection, record: int, name: str, lease: Lease | None) -> None:
    """Raise `RecordLeased` unless ``lease`` is the record's valid one, or is None and no living process holds one."""
    if lease is not None and lease.record != name:
        raise RecordLeased(f"The lease given is of {lease.record!r}; {name!r} needs its own.")
    row = connection.execute("SELECT token, process, since FROM lease WHERE record = ?", (record,)).fetchone()
    if lease is not None and (row is None or row["token"] != lease.token):
        now = "nobody holds it" if row is None else f"{Process(**json.loads(row['process']))} holds it now"
        raise RecordLeased(
            f"The lease of {name!r} taken at {lease.since[:19]} UTC is no longer valid: {now}. "
            "Take a new one and begin from the head."
        )
    if row is None or lease is not None:
        return
    holder = Process(**json.loads(row["process"]))
    if not holder.alive():
        return
    who = f"this process ({holder.pid})" if holder == Process.current() else str(holder)
    raise RecordLeased(
        f"{name!r} is being trained by {who} since {row['since'][:19]} UTC; a record has one training session at a "
        "time. Stop that one, or train a new record as a branch. If you know it is gone, take its lease with "
        "take_over=True."
    )
