"""Requests on their way to the scheduler: just submitted, waiting for their adapter, or taken back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any

from mintbook.engine.counters import Tally
from mintbook.engine.detokenizer import Detokenizer
from mintbook.engine.generation import Generation
from mintbook.engine.prefix_cache import prefix_digests
from mintbook.engine.request import Request
from mintbook.engine.sampler import Sampler
from mintbook.engine.scheduler import Scheduler
from mintbook.engine.sequence import Sequence
from mintbook.engine.step import Stepper
from mintbook.errors import CapacityError, ConfigError, MintbookError
from mintbook.model.kv_cache import BLOCK, blocks_for


class Intake:
    """Takes requests and cancellations from any thread, and hands them on in the engine's.

    A request whose adapter is still loading has no place in any line and holds no keys and values.
    """

    def __init__(
        self, tokenizer: Any, scheduler: Scheduler, stepper: Stepper, tally: Tally, wake: threading.Condition
    ) -> None:
        self._tokenizer = tokenizer
        self._scheduler = scheduler
        self._stepper = stepper
        self._tally = tally
        self._wake = wake
        self._arrived: list[tuple[Sequence, int | Future[int]]] = []
        self._cancelled: list[Sequence] = []
        self.loading: set[Sequence] = set()

    @property
    def pending(self) -> bool:
        """Whether there is something to hand on."""
        return bool(self._arrived or self._cancelled)

    @property
    def arrived(self) -> int:
        """Requests that the engine's thread has not looked at."""
        return len(self._arrived)

    def prepare(self, request: Request, on_end: Callable[[], None]) -> Sequence:
        """Check a request and make its sequence."""
        if not request.tokens:
            raise ConfigError("The prompt has no tokens. Give at least one.")
        kept = self._scheduler.config.prefix_cache and not request.sampling.needs_whole_prompt
        key = request.cache_key if kept else ""
        sequence = Sequence(
            Generation(request, on_end),
            Detokenizer(self._tokenizer, request.sampling.stop),
            Sampler(request, self._scheduler.room.cache.device),
            prefix_digests(key, request.tokens),
        )
        capacity = self._scheduler.room.cache.capacity_tokens
        needed = blocks_for(sequence.most_tokens) * BLOCK
        if needed > capacity:
            raise CapacityError(
                f"A prompt of {len(request.tokens)} tokens with max_tokens={request.sampling.max_tokens} needs "
                f"{needed} KV-cache tokens; the cache has {capacity}. "
                "Shorten it, or open the session with more kv_tokens."
            )
        return sequence

    def take(self, sequence: Sequence, slot: int | Future[int]) -> Generation:
        """Let a request in, or raise `CapacityError` when too many wait; the caller holds the lock."""
        free = max(0, self._scheduler.config.max_sequences - len(self._scheduler.running))
        waiting = self._scheduler.waiting_count + len(self.loading) + max(0, len(self._arrived) - free)
        if waiting >= self._scheduler.config.queue_limit:
            retry = self._tally.refuse()
            revision = sequence.request.revision
            self._scheduler.feed.say("refused", revision=revision, waiting=waiting, retry_after_s=retry)
            raise CapacityError(
                f"{waiting} requests wait, and queue_limit is {self._scheduler.config.queue_limit}. "
                f"Ask again in {retry:.2g} s, or open the session with a larger queue_limit.",
                retry_after_s=retry,
            )
        sequence.generation.on_cancel = partial(self._cancel, sequence)
        if isinstance(slot, int):
            self._arrive(sequence, slot)
        else:
            self.loading.add(sequence)
            slot.add_done_callback(partial(self._arrive, sequence))
        return sequence.generation

    def collect(self) -> None:
        """Hand on what has come since the last time; called in the engine's thread."""
        with self._wake:
            arrived, self._arrived = self._arrived, []
            cancelled, self._cancelled = self._cancelled, []
        for sequence, slot in arrived:
            self.loading.discard(sequence)
            if not sequence.generation.done:
                self._join(sequence, slot)
        for sequence in cancelled:
            if sequence.generation.done:
                continue
            if sequence in self.loading:
                self.loading.discard(sequence)
                self._stepper.end(sequence, "cancelled")
            else:
                self._stepper.finish(sequence, "cancelled")

    def fail_all(self, error: MintbookError) -> None:
        """End all that has not been handed on."""
        for sequence in [*self.loading, *(s for s, _ in self._arrived if s not in self.loading)]:
            self._stepper.end(sequence, error)
        self.loading.clear()
        self._arrived.clear()
        self._cancelled.clear()

    def _join(self, sequence: Sequence, slot: int | Future[int]) -> None:
        try:
            sequence.slot = slot if isinstance(slot, int) else slot.result()
        except CancelledError:
            what = sequence.request.revision
            self._stepper.end(sequence, MintbookError(f"The loading of {what} was cancelled. Ask again."))
        except Exception as error:  # noqa: BLE001 — it is this request's alone
            self._stepper.end(sequence, error)
        else:
            self._scheduler.join(sequence)

    def _arrive(self, sequence: Sequence, slot: int | Future[int]) -> None:
        with self._wake:
            self._arrived.append((sequence, slot))
            self._wake.notify()

    def _cancel(self, sequence: Sequence) -> None:
        with self._wake:
            self._cancelled.append(sequence)
            self._wake.notify()
