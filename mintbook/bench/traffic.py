"""Requests at given times, and when each had its first token, heard by one event loop through the public streams."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mintbook.config import SampleConfig
from mintbook.engine.generation import Generation
from mintbook.engine.request import Request
from mintbook.errors import CapacityError
from mintbook.resident import Resident
from mintbook.store.revisions import Revision
from mintbook.store.store import Store

LONGEST_RETRY_S = 0.25


@dataclass(frozen=True, slots=True)
class Ask:
    """A request for adapter number ``adapter``, ``at_s`` seconds after the traffic begins."""

    at_s: float
    adapter: int
    prompt: tuple[int, ...]
    new: bool = False
    """Of a tenant that was in no slot when the traffic began."""


@dataclass(frozen=True, slots=True)
class Heard:
    """An ask's answer; ``first_s`` is from the ask to its first token, ``refusals`` how often it had to come again."""

    ask: Ask
    first_s: float
    end_s: float
    tokens: tuple[int, ...]
    refusals: int


Submit = Callable[[Ask], Generation]


@dataclass(frozen=True, slots=True)
class Client:
    """Asks the adapters of a store as a session does, but with prompts of tokens, and nothing ends an answer early."""

    resident: Resident
    store: Store
    revisions: Sequence[Revision]

    def submit(self, adapter: int, prompt: tuple[int, ...], sampling: SampleConfig) -> Generation:
        """Enqueue a prompt for one of the revisions; its slot stays leased until the answer ends."""
        revision = self.revisions[adapter]
        lease = self.resident.residency.lease(revision, self.store)
        request = Request(
            tokens=prompt,
            sampling=sampling,
            revision=revision.reference,
            digest=revision.digest,
            end_ids=frozenset(),
            cache_key=f"{self.resident.base.digest}:{revision.weights_digest}",
        )
        try:
            return self.resident.engine.submit(request, on_end=lease.end, slot=lease.slot)
        except BaseException:
            lease.end()
            raise


@dataclass(frozen=True, slots=True)
class Preparation:
    """Blocking work that begins ``at_s`` seconds into the traffic; new tenants ask when it has ended."""

    at_s: float
    work: Callable[[], object]


def run_traffic(asks: Sequence[Ask], submit: Submit, preparation: Preparation | None = None) -> list[Heard]:
    """Ask everything at its time and return what was heard, in order; a refused ask comes again after its hint."""

    async def prepared(began: float) -> None:
        if preparation is not None:
            await asyncio.sleep(max(0.0, began + preparation.at_s - time.perf_counter()))
            await asyncio.to_thread(preparation.work)

    async def all_of_them() -> list[Heard]:
        began = time.perf_counter()
        ready = asyncio.create_task(prepared(began))
        heard = await asyncio.gather(*(_answered(ask, submit, began, ready) for ask in asks))
        await ready
        return list(heard)

    return asyncio.run(all_of_them())


async def _answered(ask: Ask, submit: Submit, began: float, ready: asyncio.Task[None]) -> Heard:
    due = began + ask.at_s
    if ask.new:
        await ready
        due = max(due, time.perf_counter())
    await asyncio.sleep(max(0.0, due - time.perf_counter()))
    refusals = 0
    while True:
        try:
            generation = submit(ask)
            break
        except CapacityError as error:
            refusals += 1
            await asyncio.sleep(min(LONGEST_RETRY_S, max(0.001, error.retry_after_s)))
    first = None
    async for _ in generation:
        if first is None:
            first = time.perf_counter()
    end = time.perf_counter()
    # From when it was due: a client that is late because the machine is busy waits like everyone else.
    return Heard(ask, (first or end) - due, end - due, generation.result().tokens, refusals)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least ``share`` of all do not exceed.

    >>> quantile([4, 1, 3, 2], 0.5), quantile([4, 1, 3, 2], 0.95)
    (2, 4)
    """
    return sorted(values)[max(0, math.ceil(share * len(values) - 1e-9) - 1)]
