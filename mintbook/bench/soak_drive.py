"""The driver of a soak: keeps the engine at its limit, cancels, and sorts what comes back."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mintbook.bench.soak_table import Key, Line, Zipf
from mintbook.bench.traffic import Client
from mintbook.engine.generation import Generation
from mintbook.engine.request import Completion
from mintbook.errors import CapacityError, CorruptStore, MintbookError
from mintbook.store.page import Page
from mintbook.store.revisions import Revision
from mintbook.store.serving import unheard
from mintbook.store.store import Store

OUTSTANDING = 96
"""Requests that wait or run at a time."""
CANCELLED = 0.06
"""Share of the requests that are cancelled, at once or up to `LATEST_CANCEL_S` later."""
LATEST_CANCEL_S = 0.1
FAILING = 0.03
"""Share of the reads from the store that fail."""
LAST_WAIT_S = 120.0
"""How long after the soak an answer may still come before it is lost."""
INJECTED = "injected by the soak"

Said = tuple[tuple[int, ...], tuple[float, ...] | None]
"""An answer's tokens and log-probabilities."""


class FailingStore(Store):
    """A store of which some reads fail while ``failing`` is set."""

    failing = False
    dice = random.Random(3)

    def serving_page(self, revision: Revision, dtype: torch.dtype, on_stage: Callable[[str], None] = unheard) -> Page:
        """Read as a store does, or fail."""
        if self.failing and self.dice.random() < FAILING:
            raise CorruptStore(f"{revision.reference} cannot be read: {INJECTED}.")
        return super().serving_page(revision, dtype, on_stage)


@dataclass(slots=True)
class Record:
    """What a soak has seen; one answer per key is kept, and what differs from it is an error at once."""

    answers: dict[Key, Said] = field(default_factory=dict)
    parts: dict[Key, set[Said]] = field(default_factory=dict)
    """What cancelled requests had said."""
    ended: int = 0
    cancelled: int = 0
    failed: int = 0
    refused: int = 0
    tokens: int = 0
    lost: int = 0
    memory: list[tuple[float, float]] = field(default_factory=list)
    """Seconds into the soak, and the process' MiB."""


def said(completion: Completion) -> Said:
    """Return what an answer is held by."""
    return completion.tokens, completion.logprobs


@dataclass(frozen=True, slots=True)
class _Running:
    key: Key
    generation: Generation
    cancel_at: float | None


class Drive:
    """Asks and listens, in the thread of the caller; ``broken`` are adapters whose file is damaged."""

    def __init__(
        self, client: Client, table: Sequence[Line], broken: frozenset[int], say: Callable[[str], None]
    ) -> None:
        self.client = client
        self.table = table
        self.broken = broken
        self.record = Record()
        self._say = say
        self._dice = random.Random(5)
        self._zipf = Zipf(len(client.revisions), self._dice)
        self._running: deque[_Running] = deque()

    def run(self, seconds: float) -> Record:
        """Keep the engine busy for some seconds, wait for what is left, and return what was seen."""
        began = last = time.monotonic()
        while (now := time.monotonic()) < began + seconds:
            self._fill(now)
            self._running[0].generation.wait(0.01)
            self._collect()
            if now - last >= 0.5:
                last = now
                self.record.memory.append((now - began, resident_mib()))
                self._say(f"soak: {now - began:.0f} of {seconds:.0f} s, {self.record.ended} answers")
        until = time.monotonic() + LAST_WAIT_S
        while self._running and time.monotonic() < until:
            self._running[0].generation.wait(0.1)
            self._collect()
        self.record.lost = len(self._running)
        return self.record

    def _fill(self, now: float) -> None:
        while len(self._running) < OUTSTANDING:
            key = self._zipf.draw()
            line = self.table[key.line]
            try:
                generation = self.client.submit(key.adapter, line.tokens, line.sampling)
            except CapacityError:
                self.record.refused += 1
                if self._running:
                    return
                time.sleep(0.001)
                continue
            cancels = self._dice.random() < CANCELLED
            cancel_at = now + self._dice.random() * LATEST_CANCEL_S if cancels else None
            self._running.append(_Running(key, generation, cancel_at))

    def _collect(self) -> None:
        now = time.monotonic()
        for _ in range(len(self._running)):
            one = self._running.popleft()
            if one.generation.done:
                self._take(one.key, one.generation)
                continue
            if one.cancel_at is not None and one.cancel_at <= now:
                one.generation.cancel()
            self._running.append(one)

    def _take(self, key: Key, generation: Generation) -> None:
        try:
            completion = generation.result()
        except CorruptStore as error:
            if key.adapter not in self.broken and INJECTED not in str(error):
                raise
            self.record.failed += 1
            return
        self.record.tokens += len(completion.tokens)
        if completion.tokens and key.adapter in self.broken:
            raise MintbookError(f"{completion.revision} answered from a damaged file. No row was written.")
        if completion.stop_reason == "cancelled":
            self.record.cancelled += 1
            if completion.tokens:
                self.record.parts.setdefault(key, set()).add(said(completion))
            return
        self.record.ended += 1
        first = self.record.answers.setdefault(key, said(completion))
        if first != said(completion):
            raise MintbookError(
                f"{completion.revision} answered line {key.line} with {said(completion)} and before with {first}. No "
                "row was written; this is a fault of mintbook, please report it."
            )


def check_alone(client: Client, table: Sequence[Line], record: Record, say: Callable[[str], None]) -> int:
    """Hold every answer against its adapter's when it is asked alone, and return how many different ones those were.

    A cancelled request must have said a beginning of it. Raises `MintbookError` where one is wrong.
    """
    keys = sorted({*record.answers, *record.parts})
    for number, key in enumerate(keys):
        if number % 20 == 0:
            say(f"asking alone: {number} of {len(keys)}")
        tokens, logprobs = said(client.submit(key.adapter, *table[key.line]).result())
        for part in record.parts.get(key, ()):
            count = len(part[0])
            begins = tokens[:count], None if logprobs is None else logprobs[:count]
            if part != begins:
                raise _wrong(key, part, begins)
        if record.answers.get(key, (tokens, logprobs)) != (tokens, logprobs):
            raise _wrong(key, record.answers[key], (tokens, logprobs))
    return len(keys)


def resident_mib() -> float:
    """Return the process' resident memory in MiB; 0 where the system does not say."""
    info = Path("/proc/self/status")
    lines = info.read_text(encoding="ascii").splitlines() if info.is_file() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:")), 0.0)


def _wrong(key: Key, found: Said, alone: Said) -> MintbookError:
    return MintbookError(
        f"Adapter {key.adapter} answered line {key.line} with {found}; alone it says {alone}. No row was written; this "
        "is a fault of mintbook, please report it."
    )
