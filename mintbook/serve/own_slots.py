"""Slots that belong to runs: nobody else knows them until a revision comes to live there."""

from __future__ import annotations

from dataclasses import dataclass

from mintbook.engine.engine import Engine
from mintbook.model.packed_model import PackedModel
from mintbook.serve.room import Room
from mintbook.store.page import Page


@dataclass(slots=True, eq=False)
class _Asked:
    slot: int | None = None
    abandoned: bool = False


class OwnSlots:
    """The slots of runs and their ranks, beside the revisions in the same room."""

    def __init__(self, engine: Engine, room: Room) -> None:
        self._engine = engine
        self._room = room
        self._ranks: dict[int, int] = {}

    def place(self, page: Page) -> int:
        """Copy a page into a slot of its own, making room as needed, and return it."""
        room, asked = self._room, _Asked()
        room.check_rank(page.rank, "The adapter")
        with room.lock:
            room.promise(page.rank)

        def enter(model: PackedModel) -> int:
            slot = room.load(model, page)
            with room.lock:
                abandoned = asked.abandoned
                if not abandoned:
                    asked.slot = slot
                    self._ranks[slot] = page.rank
            if abandoned:
                model.bank.free(slot)
            return slot

        try:
            return self._engine.call(enter)
        except BaseException:
            # An interrupted caller never hears of the slot that its call has made, or is about to make.
            with room.lock:
                asked.abandoned = True
                if asked.slot is None:
                    room.promised -= page.rank
            if asked.slot is not None:
                self.discard(asked.slot)
            raise

    def take_over(self, slot: int) -> int:
        """Forget a slot, which is somebody else's from now on, and return its rank; the room's lock is held."""
        return self._ranks.pop(slot)

    def discard(self, slot: int) -> None:
        """Free a slot; one that was taken over is left alone."""

        def free(model: PackedModel) -> None:
            with self._room.lock:
                rank = self._ranks.pop(slot, None)
                self._room.promised -= rank or 0
            if rank is not None:
                model.bank.free(slot)

        self._engine.call(free)
