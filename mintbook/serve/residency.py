"""Which revisions are in the slot bank now, who needs them, and which one makes room."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass, field

from mintbook.engine.engine import Engine
from mintbook.errors import BaseMismatch, CapacityError, ConfigError
from mintbook.model.packed_model import PackedModel
from mintbook.store.page import Page
from mintbook.store.revisions import Revision
from mintbook.store.store import Store


@dataclass(slots=True, eq=False)
class _Resident:
    slot: Future[int] = field(default_factory=Future)
    leases: int = 0


class Residency:
    """Loads revisions into slots on demand, once however many ask, and keeps them until their room is needed.

    Slots are keyed by what a revision computes (its ``weights_digest``), so two names of the same weights share one, in
    whatever stores they are. One residency serves every session on its base.
    A slot that a request or a run has leased is never taken away; among the others the longest unused goes first.
    """

    def __init__(self, engine: Engine, base_digest: str) -> None:
        self._engine = engine
        self._base_digest = base_digest
        self._residents: OrderedDict[str, _Resident] = OrderedDict()
        self._lock = threading.Lock()

    def acquire(self, revision: Revision, store: Store) -> int:
        """Return the revision's slot, leased until `release`; load it from its store first when it is cold.

        Raises `BaseMismatch` when it belongs to another base, `CorruptStore` when its bytes do not match its digest,
        and `CapacityError` when every slot is leased. An interrupt while loading leaves no lease and no slot behind.
        """
        self.check_base(revision.manifest.base_digest, revision.reference)
        key = revision.weights_digest
        with self._lock:
            resident = self._residents.get(key)
            mine = resident is None
            if resident is None:
                resident = self._residents[key] = _Resident()
            resident.leases += 1
            self._residents.move_to_end(key)
        try:
            if mine:
                self._load(key, resident, revision, store)
            return resident.slot.result()
        except BaseException:
            with self._lock:
                resident.leases -= 1
            raise

    def release(self, revision: Revision) -> None:
        """End one lease; the revision stays loaded until its room is needed."""
        with self._lock:
            self._residents[revision.weights_digest].leases -= 1

    def _load(self, key: str, resident: _Resident, revision: Revision, store: Store) -> None:
        def enter(page: Page, model: PackedModel) -> None:
            slot = self._place(model, page)
            with self._lock:
                wanted = not resident.slot.done()
                if wanted:
                    resident.slot.set_result(slot)
            if not wanted:  # whoever asked was interrupted meanwhile
                model.bank.free(slot)

        try:
            page = store.page(revision)
            self._engine.call(lambda model: enter(page, model))
        except BaseException as error:
            interrupted = CapacityError(f"Loading {revision.reference} was interrupted. Ask again.")
            with self._lock:
                if not resident.slot.done():
                    del self._residents[key]
                    resident.slot.set_exception(error if isinstance(error, Exception) else interrupted)
            raise

    def check_base(self, base_digest: str, what: str) -> None:
        """Raise `BaseMismatch` unless ``what`` belongs to the resident base."""
        if base_digest != self._base_digest:
            raise BaseMismatch(
                f"{what} was made for the base {base_digest[:12]}, and the resident base is {self._base_digest[:12]}. "
                "Open a session on its own base; an adapter has no meaning on another."
            )

    def place(self, page: Page) -> int:
        """Copy a page into a slot that nobody else knows (a run's own), making room as needed, and return it."""
        return self._engine.call(lambda model: self._place(model, page))

    def adopt(self, revision: Revision, slot: int) -> None:
        """Make a run's own slot the home of the revision it became, without copying; a second home is freed."""
        with self._lock:
            known = revision.weights_digest in self._residents
            if not known:
                resident = self._residents[revision.weights_digest] = _Resident()
                resident.slot.set_result(slot)
        if known:
            self.discard(slot)

    def discard(self, slot: int) -> None:
        """Free a run's own slot; one that a revision has come to live in is left alone."""

        def free(model: PackedModel) -> None:
            with self._lock:
                owned = any(
                    r.slot.done() and not r.slot.exception() and r.slot.result() == slot
                    for r in self._residents.values()
                )
            if not owned:
                model.bank.free(slot)

        self._engine.call(free)

    def resident_digests(self) -> list[str]:
        """Return the weights digests that are loaded now, the longest unused first."""
        with self._lock:
            return [key for key, resident in self._residents.items() if resident.slot.done()]

    def _place(self, model: PackedModel, page: Page) -> int:
        if page.rank > model.bank.rows:
            raise ConfigError(
                f"An adapter of rank {page.rank} never fits in {model.bank.rows} rank-rows. Open the session with "
                f"slot_rows={page.rank} or more."
            )
        while True:
            try:
                return model.bank.load(page)
            except CapacityError:
                with self._lock:
                    idle = [k for k, r in self._residents.items() if r.leases == 0 and r.slot.done()]
                    if not idle:
                        raise
                    evicted = self._residents.pop(idle[0])
                model.bank.free(evicted.slot.result())
