"""Which revisions are in the slot bank now, who needs them, and which one makes room.

Lock discipline: one lock guards the tables and is held for dictionary work only, never while anything is read, copied,
waited for or told; the bank is touched only inside `Engine.call`, and futures are completed after the lock is let go.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from mintbook.engine.engine import Engine
from mintbook.errors import BaseMismatch, CapacityError
from mintbook.model.packed_model import PackedModel
from mintbook.serve.counters import ResidencyCounters, Tally
from mintbook.serve.host_cache import HostCache
from mintbook.serve.lease import Entry, SlotLease
from mintbook.serve.load_times import LoadTimes, Stopwatch
from mintbook.serve.loader import Loader
from mintbook.serve.own_slots import OwnSlots
from mintbook.serve.residents import Resident, resident_of
from mintbook.serve.room import Room
from mintbook.store.page import Page
from mintbook.store.revisions import Revision
from mintbook.store.serving import unheard
from mintbook.store.store import Store

KNOWN = 4096
"""Revisions that are remembered after they have left memory."""
LONGEST_YIELD_S = 0.5
"""How long a loader waits for one step of the answers before it goes on."""


class Residency:
    """Brings revisions from the store over the host cache into slots, once however many ask, and keeps them there.

    Slots are keyed by what a revision computes (its ``weights_digest``), so two names of the same weights share one, in
    whatever stores they are. One residency serves every session on its base. A slot that a request or a run has leased
    is never taken away; among the others the longest unused goes first. Room is promised when it is asked for: what is
    let in finds its place, and what would not is refused at once.
    """

    def __init__(self, engine: Engine, base_digest: str) -> None:
        self._engine = engine
        self._base_digest = base_digest
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._tally = Tally()
        self._feed = engine.feed
        self._room = Room(engine.model.bank.rows, self._lock, self._tally, self._feed)
        self._own = OwnSlots(engine, self._room)
        self._host = HostCache(engine.config.host_cache_bytes)
        self._loader = Loader(engine.config.loads_in_flight, engine.config.load_queue)

    def lease(self, revision: Revision, store: Store) -> SlotLease:
        """Return a lease of the revision's slot at once; it is loaded in the background when it is in none.

        Raises `BaseMismatch` when it belongs to another base, `AdapterError` when it has no rank, and `CapacityError`
        when every rank-row is in use or too many loads wait already. What goes wrong in the load, such as
        `CorruptStore`, is raised by the lease's ``slot``; the next lease tries again.
        """
        self.check_base(revision.manifest.base_digest, revision.reference)
        self._room.check_rank(revision.manifest.rank, revision.reference)
        with self._lock:
            entry = self._entry(revision)
            slot, joins = entry.slot, entry.loading
            if slot is None and not joins:
                self._begin_load(entry, store)
            self._room.take(entry)
            self._tally.slot_hits += slot is not None
            self._tally.joined += slot is None and joins
            entry.last_used = time.time()
            lease = SlotLease(entry, self._end)
            if slot is None:
                entry.waiters.append(lease)
        if slot is not None:
            lease.slot.set_result(slot)
        return lease

    def place(self, page: Page) -> int:
        """Copy a page into a slot that nobody else knows (a run's own), making room as needed, and return it."""
        return self._own.place(page)

    def discard(self, slot: int) -> None:
        """Free a run's own slot; one that a revision has come to live in is left alone."""
        self._own.discard(slot)

    def adopt(self, revision: Revision, slot: int) -> None:
        """Make a run's own slot the home of the revision it became, without copying; a second home is freed."""
        with self._lock:
            entry = self._entry(revision)
            known = entry.slot is not None or entry.loading
            if not known:
                entry.slot = slot
                entry.ready = True  # its receipt was made in this slot
                entry.last_used = time.time()
                self._room.settle(entry, self._own.take_over(slot))
                self._feed.say("adopted", revision=revision.reference, slot=slot)
        if known:
            self.discard(slot)

    def pin(self, revision: Revision, store: Store) -> None:
        """Load a revision and keep it in its slot until `unpin`; raise as `lease` does."""
        lease = self.lease(revision, store)
        lease.result()
        with self._lock:
            first = lease.entry.pin is None
            if first:
                lease.entry.pin = lease
        if not first:
            lease.end()

    def pin_in_memory(self, revision: Revision, store: Store) -> None:
        """Keep a revision's page in the host cache until `unpin`; raise `CapacityError` when it does not fit."""
        self.check_base(revision.manifest.base_digest, revision.reference)
        with self._lock:
            page = self._host.get(revision.weights_digest)
        page = page or self._read(revision, store)
        with self._lock:
            self._host.pin(self._entry(revision).key, page, revision.reference)

    def unpin(self, revision: Revision) -> None:
        """Let a revision give way again, in its slot and in memory; nothing happens where it is not pinned."""
        with self._lock:
            self._host.unpin(revision.weights_digest)
            entry = self._entries.get(revision.weights_digest)
            lease = entry.pin if entry is not None else None
            if entry is not None:
                entry.pin = None
        if lease is not None:
            lease.end()

    @contextmanager
    def prewarming(self, revision: Revision) -> Iterator[Entry]:
        """Say that somebody is getting a revision ready, for the length of a ``with`` block."""
        with self._lock:
            entry = self._entry(revision)
            entry.prewarms += 1
        try:
            yield entry
        finally:
            with self._lock:
                entry.prewarms -= 1

    def set_ready(self, lease: SlotLease) -> None:
        """Say that a leased revision's effect was seen in its slot."""
        with self._lock:
            lease.entry.ready = not lease.ended
        if not lease.ended:
            self._feed.say("ready", revision=lease.entry.revision.reference, slot=lease.entry.slot)

    def check_base(self, base_digest: str, what: str) -> None:
        """Raise `BaseMismatch` unless ``what`` belongs to the resident base."""
        if base_digest != self._base_digest:
            raise BaseMismatch(
                f"{what} was made for the base {base_digest[:12]}, and the resident base is {self._base_digest[:12]}. "
                "Open a session on its own base; an adapter has no meaning on another."
            )

    def counters(self) -> ResidencyCounters:
        """Return what was done and is being done, at one moment."""
        with self._lock:
            hot = [entry for entry in self._entries.values() if entry.slot is not None]
            return ResidencyCounters(
                **asdict(self._tally),
                host_evictions=self._host.evictions,
                loads_in_flight=self._loader.running,
                loads_queued=self._loader.queued,
                hot=len(hot),
                leased=sum(entry.leases > 0 for entry in hot),
                warm=len(self._host),
                slot_bytes=self._engine.model.bank.used_bytes,
                host_bytes=self._host.used_bytes,
            )

    def residents(self) -> list[Resident]:
        """Return what is known about every revision that was asked for, the longest unused first."""
        row_bytes = self._engine.model.bank.tensor.shape[1] * self._engine.model.bank.tensor.element_size()
        with self._lock:
            return [
                resident_of(entry, row_bytes, warm=entry.key in self._host, pinned_warm=self._host.pinned(entry.key))
                for entry in sorted(self._entries.values(), key=lambda entry: entry.last_used)
            ]

    def _begin_load(self, entry: Entry, store: Store) -> None:
        """Reserve the rows and hand the load to the loader; when either is refused, nothing has changed."""
        revision, watch = entry.revision, Stopwatch()
        self._room.take(entry)
        try:
            self._loader.submit(lambda: self._load(entry, revision, store, watch))
        except BaseException as error:
            self._room.give(entry)
            if isinstance(error, CapacityError):
                self._tally.refusals += 1
                self._feed.say("load refused", revision=revision.reference, retry_after_s=error.retry_after_s)
            raise
        entry.loading = True
        self._feed.say("loading", revision=revision.reference)

    def _load(self, entry: Entry, revision: Revision, store: Store, watch: Stopwatch) -> None:
        """Bring one revision into a slot, in a thread of the loader."""
        watch.lap("queue")
        with self._lock:
            wanted = entry.holds > 1
            page = self._host.get(entry.key) if wanted else None
            if not wanted:  # whoever asked was interrupted or has cancelled
                self._end_load(entry)
            elif page is not None:
                self._tally.host_hits += 1
            else:
                self._tally.store_reads += 1
        if not wanted:
            return
        try:
            if page is None:
                page = self._read(revision, store, watch.lap)
                with self._lock:
                    self._host.put(entry.key, page)
            watch.lap("register")
            slot, step = self._engine.call(lambda model: self._activate(model, entry, page))
        except BaseException as error:  # noqa: BLE001 — it belongs to all who wait for this load, and to nobody else
            self._fail(entry, error)
            return
        watch.lap("activate")
        self._succeed(entry, slot, watch.times())
        self._yield_to_answers(step)

    def _read(self, revision: Revision, store: Store, lap: Callable[[str], None] = unheard) -> Page:
        bank = self._engine.model.bank.tensor
        page = store.serving_page(revision, bank.dtype, lap)
        return page.pinned() if bank.is_cuda else page

    def _activate(self, model: PackedModel, entry: Entry, page: Page) -> tuple[int, int]:
        """Copy a page into a slot, in the engine; return the slot and after which step that was."""
        slot = self._room.load(model, page)
        with self._lock:
            entry.slot = slot
        return slot, self._engine.scheduler.steps

    def _yield_to_answers(self, step: int) -> None:
        """Wait until answers that go on have had a step: a wave of loads costs each step a few copies at most."""
        scheduler, until = self._engine.scheduler, time.monotonic() + LONGEST_YIELD_S
        while not scheduler.idle and scheduler.steps == step and time.monotonic() < until:
            time.sleep(0.001)

    def _succeed(self, entry: Entry, slot: int, times: LoadTimes) -> None:
        with self._lock:
            entry.times = times
            entry.loads += 1
            self._tally.loads += 1
            self._loader.recent.append(times)
            waiters, entry.waiters = entry.waiters, []
            self._end_load(entry)
        self._feed.say("loaded", revision=entry.revision.reference, slot=slot, **times.to_dict())
        for lease in waiters:
            if lease.slot.set_running_or_notify_cancel():
                lease.slot.set_result(slot)

    def _fail(self, entry: Entry, error: BaseException) -> None:
        with self._lock:
            self._tally.failed_loads += 1
            waiters, entry.waiters = entry.waiters, []
            for lease in waiters:
                lease.ended = True
                self._room.give(entry)
            self._end_load(entry)
        self._feed.say("load failed", revision=entry.revision.reference, error=str(error))
        for lease in waiters:
            if lease.slot.set_running_or_notify_cancel():
                lease.slot.set_exception(error)

    def _end_load(self, entry: Entry) -> None:
        entry.loading = False
        self._room.give(entry)

    def _end(self, lease: SlotLease) -> None:
        with self._lock:
            if lease.ended:
                return
            lease.ended = True
            waiting = lease in lease.entry.waiters
            if waiting:
                lease.entry.waiters.remove(lease)
            lease.entry.last_used = time.time()
            self._room.give(lease.entry)
        if waiting:
            lease.slot.cancel()

    def _entry(self, revision: Revision) -> Entry:
        entry = self._entries.get(revision.weights_digest)
        if entry is None:
            entry = self._entries[revision.weights_digest] = Entry(revision)
            self._forget()
        entry.revision = revision
        return entry

    def _forget(self) -> None:
        """Drop the oldest of too many entries; one that is in memory or in use goes to the end of the line instead."""
        for _ in range(8 if len(self._entries) > KNOWN else 0):
            key, entry = next(iter(self._entries.items()))
            if entry.slot is None and not entry.holds and not entry.prewarms and key not in self._host:
                del self._entries[key]
                return
            self._entries.move_to_end(key)
