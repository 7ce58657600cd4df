"""The rank-rows of the slot bank: which are promised, and which slots give way."""

from __future__ import annotations

import threading
from collections import OrderedDict

from mintbook.errors import AdapterError, CapacityError, ConfigError
from mintbook.feed import EventFeed
from mintbook.model.packed_model import PackedModel
from mintbook.serve.counters import Tally
from mintbook.serve.lease import Entry
from mintbook.store.page import Page


class Room:
    """Promises rank-rows before they are needed: what is let in finds its place, and the rest is refused at once.

    Rows are promised to entries that somebody holds and to the slots of runs. All others are idle, and give way in the
    order in which they fell idle. Its methods are called with ``lock`` held, but for `load`, which runs in the engine.
    """

    def __init__(self, rows: int, lock: threading.Lock, tally: Tally, feed: EventFeed) -> None:
        self.rows = rows
        self.promised = 0
        self.lock = lock
        self._tally = tally
        self._feed = feed
        self._idle: OrderedDict[str, Entry] = OrderedDict()

    def check_rank(self, rank: int, what: str) -> None:
        """Raise `AdapterError` for a rank that changes nothing, and `ConfigError` for one that never fits."""
        if rank < 1:
            raise AdapterError(f"{what} has rank {rank}: it changes nothing, so it would answer as the base.")
        if rank > self.rows:
            raise ConfigError(
                f"{what} has rank {rank}, which never fits in {self.rows} rank-rows. Open the session with "
                f"slot_rows={rank} or more."
            )

    def promise(self, rows: int) -> None:
        """Set rows aside; raise `CapacityError` when they are not there."""
        if self.promised + rows > self.rows:
            self._tally.refusals += 1
            raise CapacityError(
                f"{self.promised} of {self.rows} rank-rows are in use, and {rows} more are asked for. Wait for a "
                "request to end, unpin an adapter, or open the session with more slot_rows."
            )
        self.promised += rows

    def take(self, entry: Entry) -> None:
        """Hold an entry once more; raise as `promise` when it was idle and its rows are promised to a load by now."""
        if not entry.holds:
            self.promise(entry.rows)
            self._idle.pop(entry.key, None)
        entry.holds += 1

    def give(self, entry: Entry) -> None:
        """End one hold."""
        entry.holds -= 1
        if not entry.holds:
            self.promised -= entry.rows
            if entry.slot is not None:
                self._idle[entry.key] = entry

    def settle(self, entry: Entry, rows: int) -> None:
        """Take up an entry that came with its slot; ``rows`` were promised to it until now."""
        self.promised -= rows
        self._idle[entry.key] = entry

    def load(self, model: PackedModel, page: Page) -> int:
        """Copy a page into a slot, whose rows were promised; idle slots give way until it fits."""
        while True:
            try:
                return model.bank.load(page)
            except CapacityError:
                with self.lock:
                    if not self._idle:
                        raise
                    _, evicted = self._idle.popitem(last=False)
                    slot, evicted.slot, evicted.ready = evicted.slot, None, False
                    self._tally.evictions += 1
                    self._feed.say("evicted", revision=evicted.revision.reference, slot=slot)
                if slot is not None:
                    model.bank.free(slot)
