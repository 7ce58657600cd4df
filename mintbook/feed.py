"""What happens in a session now, for whoever watches: the last events, in memory, from any thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

KEPT = 1000


@dataclass(frozen=True, slots=True)
class Happening:
    """One thing that happened to an adapter or a request."""

    seq: int
    """Its number, from 1."""
    time: float
    """Seconds since 1970 UTC."""
    kind: str
    data: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


class EventFeed:
    """The last `KEPT` events; a watcher asks for those after the one that it saw last.

    >>> feed = EventFeed()
    >>> feed.say("loaded", revision="alice@1", slot=0)
    >>> [(event.seq, event.kind) for event in feed.since(0)]
    [(1, 'loaded')]
    >>> feed.since(1)
    []
    """

    def __init__(self) -> None:
        self._events: deque[Happening] = deque(maxlen=KEPT)
        self._count = 0
        self._said = threading.Condition()

    def say(self, kind: str, **data: Any) -> None:
        """Add an event; the oldest is forgotten when there are too many."""
        with self._said:
            self._count += 1
            self._events.append(Happening(self._count, time.time(), kind, data))
            self._said.notify_all()

    def since(self, seq: int, *, wait_s: float = 0.0) -> list[Happening]:
        """Return the events after number ``seq`` that are still kept, waiting up to ``wait_s`` seconds for the first.

        A gap between ``seq`` and the first one's number tells how many were forgotten.
        """
        with self._said:
            self._said.wait_for(lambda: self._count > seq, wait_s)
            return [event for event in self._events if event.seq > seq]
