"""Who is read and who is continued in the next step; plain Python over token counts."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterable
from itertools import count

from mintbook.config import EngineConfig
from mintbook.engine.chunks import chunk_end
from mintbook.engine.fair_order import FairOrder
from mintbook.engine.room import Room
from mintbook.engine.sequence import Sequence
from mintbook.errors import MintbookError
from mintbook.feed import EventFeed
from mintbook.model.batch import NO_ADAPTER, Piece
from mintbook.model.kv_cache import KVCache


class Scheduler:
    """Continues every running sequence by one token a step, and reads prompts with what is left of the budget.

    Adapters (tenants) take turns in their fair order, the requests of one in the order of their arrival. A sequence
    starts with blocks for its prompt and grows. Who must give way when blocks run out is the youngest sequence of the
    adapter that holds the most places, but never the oldest of all: it always comes to its end, then the next, so
    nothing waits for ever. An adapter that has nothing running takes a place from one that has several. Who gave way
    goes on, bit for bit, before anything new of its adapter starts.
    """

    def __init__(self, cache: KVCache, config: EngineConfig, feed: EventFeed | None = None) -> None:
        self.config = config
        self.feed = feed or EventFeed()
        self.room = Room(cache, fixed_chunks=config.batch_invariant)
        self.fair = FairOrder()
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.steps = 0
        self._lines: dict[str, list[Sequence]] = {}
        self._in_line = 0
        self._aside: set[Sequence] = set()
        self._arrivals = count()

    @property
    def waiting(self) -> list[Sequence]:
        """Those in line and those set aside, tenant by tenant; any thread may ask."""
        return [sequence for line in list(self._lines.values()) for sequence in line.copy()]

    @property
    def preempted_count(self) -> int:
        """How many are set aside."""
        return len(self._aside)

    @property
    def waiting_count(self) -> int:
        """How many wait that have not begun."""
        return self._in_line - len(self._aside)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._lines and not self.running

    def join(self, sequence: Sequence) -> None:
        """Put a request at the end of its tenant's line."""
        sequence.order = next(self._arrivals)
        self._lines.setdefault(sequence.tenant, []).append(sequence)
        self._in_line += 1
        self.fair.join(sequence.tenant)

    def drop(self, sequence: Sequence) -> None:
        """Forget a sequence, running or waiting, and give its blocks back."""
        if sequence.table is not None:
            self.running.remove(sequence)
        else:
            self._step_out(sequence)
        self.room.leave(sequence)
        self.fair.leave(sequence.tenant)

    def plan(self) -> list[tuple[Sequence, Piece]]:
        """Admit whom there is room for, and return the pieces of the next step."""
        self.steps += 1
        self._admit()
        turns = self._turns()
        for sequence in turns:
            if len(sequence.tokens) - sequence.read == 1:
                self._grow(sequence)
        planned, budget = [], self.config.prefill_tokens
        for sequence in turns:
            if sequence.table is None:
                continue  # it gave way to another
            end = len(sequence.tokens)
            if end - sequence.read > 1:
                end = chunk_end(sequence.read, end, budget, fixed=self.config.batch_invariant)
                budget -= end - sequence.read
            if end > sequence.read:
                sequence.stepped = self.steps
                tokens = sequence.tokens[sequence.read : end]
                planned.append((sequence, Piece(tokens, sequence.slot, sequence.read, sequence.table)))
        return planned

    def _turns(self) -> list[Sequence]:
        """Return the running sequences, whose turn it is first, without those beyond ``max_adapters`` adapters."""
        slots: set[int] = {NO_ADAPTER}
        turns = []
        for sequence in sorted(self.running, key=lambda s: (self.fair[s.tenant], s.stepped, s.order)):
            if sequence.slot in slots or len(slots) <= self.config.max_adapters:
                slots.add(sequence.slot)
                turns.append(sequence)
        return turns

    def _admit(self) -> None:
        passed: set[str] = set()
        while (sequence := self._next(passed)) is not None:
            if self._is_being_read(sequence):
                passed.add(sequence.tenant)  # soon it can have the beginning that another reads now
            elif not self._enter(sequence):
                break

    def _next(self, passed: set[str]) -> Sequence | None:
        tenants: Iterable[str] = (tenant for tenant in self._lines if tenant not in passed)
        if len(self.running) >= self.config.max_sequences:
            served = {sequence.tenant for sequence in self.running}
            tenants = (tenant for tenant in tenants if tenant not in served)
        heads = (self._lines[tenant][0] for tenant in tenants)
        return min(heads, key=lambda s: (self.fair[s.tenant], s.order), default=None)

    def _is_being_read(self, sequence: Sequence) -> bool:
        """Return whether a running sequence is about to read what this one would have to read next."""
        if sequence.aside is not None or not sequence.digests:
            return False
        known = len(self.room.prefixes.find(sequence.digests))
        missing = sequence.digests[known] if known < len(sequence.digests) else None
        return any(missing in other.digests[other.kept :] for other in self.running if other.kept < len(other.digests))

    def _enter(self, sequence: Sequence) -> bool:
        """Let a sequence run if there is room, or if its tenant has nothing running and another gives way."""
        starved = all(other.tenant != sequence.tenant for other in self.running)
        while len(self.running) >= self.config.max_sequences or not self.room.enter(sequence, len(self.running)):
            victim = self._over_served() if starved else None
            if victim is None:
                return False
            self._preempt(victim)
        self._step_out(sequence)
        self.running.append(sequence)
        return True

    def _over_served(self) -> Sequence | None:
        """Return the youngest sequence of the tenant that runs the most, if those are several."""
        if self.preempted_count >= self.config.max_sequences:
            return None  # host memory has an end too
        tenant, places = Counter(sequence.tenant for sequence in self.running).most_common(1)[0]
        return max((s for s in self.running if s.tenant == tenant), key=lambda s: s.order) if places > 1 else None

    def _grow(self, sequence: Sequence) -> None:
        """Give a sequence room for its next token; the least entitled gives way, which may be itself."""
        while sequence.table is not None and not self.room.grow(sequence, len(sequence.tokens)):
            places = Counter(other.tenant for other in self.running)
            oldest = min(self.running, key=lambda s: s.order)
            others = [other for other in self.running if other is not oldest]
            if not others:
                raise MintbookError(
                    f"{sequence.request.revision} has all of the KV cache and needs more of it. "
                    "This is a fault of mintbook; please report it."
                )
            self._preempt(max(others, key=lambda s: (places[s.tenant], self.fair[s.tenant], s.order)))

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.room.set_aside(sequence)
        insort(self._lines.setdefault(sequence.tenant, []), sequence, key=lambda s: s.order)
        self._in_line += 1
        self._aside.add(sequence)
        self.preemptions += 1
        self.feed.say("preempted", revision=sequence.request.revision, tokens=len(sequence.tokens))

    def _step_out(self, sequence: Sequence) -> None:
        line = self._lines[sequence.tenant]
        line.remove(sequence)
        self._in_line -= 1
        self._aside.discard(sequence)
        if not line:
            del self._lines[sequence.tenant]
