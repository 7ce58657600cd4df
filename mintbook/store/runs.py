"""Runs: what long actions leave in the store, a row written at their ends and a folder for their events."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from mintbook.errors import RunError, UnknownReference, nearest
from mintbook.store.clock import utc_now
from mintbook.store.database import Database
from mintbook.store.process import Process
from mintbook.store.records import Records, record_id

Status = Literal["running", "done", "stopped", "failed"]
STATUSES = (*get_args(Status), "interrupted")
"""``interrupted`` is never written: it is how a run reads that is ``running`` in a process that has died."""

_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{4}")
_COLUMNS = "SELECT run.*, record.name AS record_name FROM run LEFT JOIN record ON record.id = run.record "


@dataclass(frozen=True, slots=True)
class RunRow:
    """One long action as the store knows it."""

    id: str
    kind: str
    record: str | None
    config: dict[str, Any]
    status: str
    process: Process
    started: str
    ended: str | None
    result: dict[str, Any] | None
    error: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return asdict(self)


class Runs:
    """The runs of a store."""

    def __init__(self, database: Database, records: Records, root: Path) -> None:
        self._database = database
        self._records = records
        self._root = root / "runs"
        self._root.mkdir(exist_ok=True)

    def folder(self, run: str) -> Path:
        """Return the folder of a run's files; raise `UnknownReference` for what is not of the form of a run's id."""
        if not _ID.fullmatch(run):
            raise self._unknown(run)
        return self._root / run

    def empty_folders(self) -> Iterator[Path]:
        """Return the folders without a file, which a crash between a folder and its row may leave."""
        yield from (path for path in sorted(self._root.iterdir()) if path.is_dir() and not any(path.iterdir()))

    def start(self, kind: str, record: str | None, config: dict[str, Any]) -> RunRow:
        """Make a run of the calling process: first its folder, then its row."""
        run = self._new_folder()
        with self._database.transaction() as connection:
            owner = None if record is None else record_id(connection, record)
            if record is not None and owner is None:
                self.folder(run).rmdir()
                raise self._records.unknown(record)
            connection.execute(
                "INSERT INTO run (id, kind, record, config, status, process, started) "
                "VALUES (?, ?, ?, ?, 'running', ?, ?)",
                (run, kind, owner, json.dumps(config), json.dumps(asdict(Process.current())), utc_now()),
            )
        return self.get(run)

    def update(self, run: str, status: Status, result: dict[str, Any] | None, error: str | None) -> RunRow:
        """Write how a run ended; ``running`` takes an ended or interrupted run up again in the calling process."""
        if status not in get_args(Status):
            raise RunError(f"{status!r} is not a status to write. Use one of {', '.join(get_args(Status))}.")
        with self._database.transaction() as connection:
            row = connection.execute(_COLUMNS + "WHERE run.id = ?", (run,)).fetchone()
            if row is None:
                raise self._unknown(run)
            holder = Process(**json.loads(row["process"]))
            if row["status"] == "running" and holder != Process.current() and holder.alive():
                raise RunError(f"Run {run} is running in {holder}; only that process may change it.")
            resumed = status == "running"
            connection.execute(
                "UPDATE run SET status = ?, process = ?, ended = ?, result = coalesce(?, result), error = ? "
                "WHERE id = ?",
                (
                    status,
                    json.dumps(asdict(Process.current())) if resumed else row["process"],
                    None if resumed else utc_now(),
                    None if result is None else json.dumps(result),
                    error,
                    run,
                ),
            )
        return self.get(run)

    def get(self, run: str) -> RunRow:
        """Return one run; raise `UnknownReference` with near ids."""
        row = self._database.row(_COLUMNS + "WHERE run.id = ?", (run,))
        if row is None:
            raise self._unknown(run)
        return _run(row)

    def newest(self, record: str | None, status: str | None, limit: int | None) -> list[RunRow]:
        """Return runs, newest first."""
        if status is not None and status not in STATUSES:
            raise RunError(f"{status!r} is not a status of a run. They are {', '.join(STATUSES)}.")
        if record is not None:
            self._records.get(record)
        # Which of the rows marked as running still run is not in the table, so the limit is applied after asking.
        written = "running" if status == "interrupted" else status
        judged = written == "running"
        conditions = {"record.name = ?": record, "status = ?": written}
        given = {condition: value for condition, value in conditions.items() if value is not None}
        where = f"WHERE {' AND '.join(given)} " if given else ""
        rows = self._database.rows(
            _COLUMNS + where + "ORDER BY run.id DESC LIMIT ?",
            (*given.values(), -1 if judged or limit is None else limit),
        )
        found = [run for run in map(_run, rows) if status is None or run.status == status]
        return found if limit is None else found[:limit]

    def _new_folder(self) -> str:
        while True:
            now = datetime.now(UTC)
            # The last four digits count 65536ths of the second: ids sort by time and remain short.
            run = f"{now:%Y%m%d-%H%M%S}-{now.microsecond * 65536 // 1_000_000:04x}"
            try:
                self.folder(run).mkdir()
            except FileExistsError:
                continue
            return run

    def _unknown(self, run: str) -> UnknownReference:
        ids = [row["id"] for row in self._database.rows("SELECT id FROM run ORDER BY id DESC LIMIT 200")]
        return UnknownReference(f"There is no run {run!r} in this store.{nearest(run, ids)}")


def _run(row: sqlite3.Row) -> RunRow:
    process = Process(**json.loads(row["process"]))
    interrupted = row["status"] == "running" and not process.alive()
    return RunRow(
        id=row["id"],
        kind=row["kind"],
        record=row["record_name"],
        config=json.loads(row["config"]),
        status="interrupted" if interrupted else row["status"],
        process=process,
        started=row["started"],
        ended=row["ended"],
        result=None if row["result"] is None else json.loads(row["result"]),
        error=row["error"],
    )
