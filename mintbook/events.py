"""A run's log on disk: one JSON object a line, appended as things happen and readable while they do."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mintbook.errors import CorruptStore, RunError

_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened in a run."""

    seq: int
    """Position in the log, from 1."""
    time: float
    """Seconds since 1970 UTC."""
    kind: str
    data: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the event as plain data."""
        return {"seq": self.seq, "time": self.time, "kind": self.kind, "data": self.data}


class EventLog:
    """The writing end of a log; one process writes, any of its threads may.

    Opening a log that a crash left behind drops a last line that was not finished, and numbers go on from there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            self._seq = self._mend()
        except BaseException:
            os.close(self._descriptor)
            raise

    def append(self, kind: str, **data: Any) -> Event:
        """Write one event and return it; it is in the file, whole, when this returns."""
        with self._lock:
            if self._descriptor < 0:
                raise RunError(f"The log {self.path} is closed; nothing more can be written. Open it again.")
            event = Event(self._seq + 1, time.time(), kind, data)
            line = json.dumps(event.to_dict(), separators=(",", ":")).encode() + b"\n"
            start = os.fstat(self._descriptor).st_size
            try:
                # Unbuffered: what was logged survives the process, though not a power cut before `close`.
                while line:
                    line = line[os.write(self._descriptor, line) :]
                self._seq = event.seq
            except BaseException:
                # A full disk or an interrupt: half a line here would damage the next one too.
                os.ftruncate(self._descriptor, start)
                raise
        return event

    def close(self) -> None:
        """Force the log to disk and close it; a second call does nothing."""
        with self._lock:
            if self._descriptor >= 0:
                os.fsync(self._descriptor)
                os.close(self._descriptor)
                self._descriptor = -1

    def __enter__(self) -> Self:
        """Return the log."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the log."""
        self.close()

    def _mend(self) -> int:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        events = [_event(line, self.path) for line in content[:whole].split(b"\n")[:-1]]
        for number, event in enumerate(events, 1):
            if event.seq != number:
                raise CorruptStore(
                    f"{self.path} has event {event.seq} where {number} belongs: lines are lost, or two processes write."
                )
        if whole < len(content):
            os.ftruncate(self._descriptor, whole)
        return len(events)


def read_events(path: Path, *, after: int = 0) -> list[Event]:
    """Return the events whose number is above ``after``, oldest first, without a last line that is still being written.

    Only the end of the file is read, so that a poll costs what is new. Raises `CorruptStore` when a finished line is
    not an event.
    """
    found: list[Event] = []
    for line in _lines_from_end(path):
        event = _event(line, path)
        if event.seq <= after:
            break
        found.append(event)
    return found[::-1]


def _lines_from_end(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        at = file.seek(0, os.SEEK_END)
        rest = b""
        torn = True
        while at > 0:
            step = min(_BLOCK, at)
            at -= step
            file.seek(at)
            first, *lines = (file.read(step) + rest).split(b"\n")
            for line in reversed(lines):
                if not torn:
                    yield line
                torn = False
            rest = first
        if rest and not torn:
            yield rest


def _event(line: bytes, path: Path) -> Event:
    try:
        data = json.loads(line)
        return Event(data["seq"], data["time"], data["kind"], data["data"])
    except (ValueError, LookupError, TypeError) as error:
        raise CorruptStore(f"{path} holds a line that is not an event: {line[:80]!r} ({error}).") from error
