"""The one loop that owns every forward of a session: generation, training steps, scoring."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import torch
from torch import Tensor

from mintbook.config import EngineConfig
from mintbook.engine.counters import Counters, Tally
from mintbook.engine.generation import Generation
from mintbook.engine.intake import Intake
from mintbook.engine.request import Request
from mintbook.engine.scheduler import Scheduler
from mintbook.engine.step import Stepper
from mintbook.errors import ConfigError, MintbookError
from mintbook.feed import EventFeed
from mintbook.model.batch import NO_ADAPTER, PackedBatch, Piece
from mintbook.model.kv_cache import BLOCK, KVCache
from mintbook.model.packed_model import PackedModel

T = TypeVar("T")


class Engine:
    """Runs forwards one after the other in a thread of its own; everyone else enqueues.

    Work comes in two kinds: requests, which it continues together token by token, and calls (a training step, a
    scoring, a slot to load), which run whole between two steps. When both wait, calls get ``call_share`` of the time.
    """

    def __init__(
        self,
        model: PackedModel,
        tokenizer: Any,
        config: EngineConfig | None = None,
        *,
        call_share: float = 0.5,
    ) -> None:
        if not 0 < call_share < 1:
            raise ConfigError(f"call_share is {call_share!r}; it is a share of the time, between 0 and 1.")
        self.model = model
        self.tokenizer = tokenizer
        self.call_share = call_share
        self.config = config = config or EngineConfig()
        self.cache = KVCache(config.kv_tokens, model.device)
        self.feed = EventFeed()
        """What happens to requests and adapters on this engine."""
        self.scheduler = Scheduler(self.cache, config, self.feed)
        self._tally = Tally()
        self._stepper = Stepper(model, self.scheduler, self._tally)
        self._wake = threading.Condition()
        self._intake = Intake(tokenizer, self.scheduler, self._stepper, self._tally, self._wake)
        self._calls: deque[tuple[Callable[[PackedModel], Any], Future[Any]]] = deque()
        self._closed = False
        self._owed_s = 0.0
        self._thread = threading.Thread(target=self._loop, name="mintbook-engine", daemon=True)
        self._thread.start()

    def call(self, work: Callable[[PackedModel], T]) -> T:
        """Run ``work(model)`` in the loop, wait for it and return what it returns; raise what it raises."""
        if threading.current_thread() is self._thread:
            return work(self.model)
        future: Future[T] = Future()
        with self._wake:
            self._check_open()
            self._calls.append((work, future))
            self._wake.notify()
        try:
            return future.result()
        except BaseException:
            future.cancel()  # an interrupted caller takes its work with it, unless it runs already
            raise

    def submit(
        self,
        request: Request,
        on_end: Callable[[], None] = lambda: None,
        *,
        slot: int | Future[int] = NO_ADAPTER,
    ) -> Generation:
        """Enqueue a request for the adapter in ``slot``; for one that is still loading it waits, and holds nothing.

        ``on_end`` is called once, in the engine's thread, when the engine is done with the request however it ended.
        Raises `CapacityError` when the request could never fit, whatever else is running, and when ``queue_limit``
        others wait; then ``retry_after_s`` says when to ask again.
        """
        sequence = self._intake.prepare(request, on_end)
        with self._wake:
            self._check_open()
            return self._intake.take(sequence, slot)

    def counters(self) -> Counters:
        """Return what the engine has done and does, in numbers; they are read one by one while the loop goes on."""
        scheduler, room, tally = self.scheduler, self.scheduler.room, self._tally
        loading = len(self._intake.loading)
        return Counters(
            requests_waiting=scheduler.waiting_count + loading + self._intake.arrived,
            requests_loading=loading,
            requests_running=len(scheduler.running),
            requests_preempted=scheduler.preempted_count,
            finished=dict(tally.finished),
            refused=tally.refused,
            preemptions=scheduler.preemptions,
            tokens_read=tally.tokens_read,
            tokens_from_prefixes=room.served_tokens,
            tokens_generated=tally.tokens_generated,
            steps=scheduler.steps,
            adapters_in_step=tally.adapters_in_step,
            kv_tokens_used=self.cache.capacity_tokens - self.cache.free_tokens,
            kv_tokens_kept=room.prefixes.unreferenced * BLOCK,
            kv_tokens_free=self.cache.free_tokens,
            first_token_s=tally.first_token.histogram(),
            next_token_s=tally.next_token.histogram(),
        )

    def logits(self, sequences: Sequence[Sequence[int]], slots: Sequence[int], *, start: Sequence[int]) -> list[Tensor]:
        """Return each sequence's logits ``[n - start, V]`` in fp32, in one packed forward.

        The rows are ``start`` to the last.
        """
        pieces = [Piece(tokens, slot=slot) for tokens, slot in zip(sequences, slots, strict=True)]

        def work(model: PackedModel) -> list[Tensor]:
            batch = PackedBatch.of(pieces, device=model.device)
            rows = [
                torch.arange(a + skip, b, device=model.device)
                for a, b, skip in zip(batch.bounds, batch.bounds[1:], start, strict=False)
            ]
            logits = model.logits(batch, torch.cat(rows)).float()
            return list(torch.split(logits, [len(r) for r in rows]))

        return self.call(work)

    def logprobs(
        self,
        sequences: Sequence[Sequence[int]],
        slots: Sequence[int],
        *,
        budget: int = 1024,
        say: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Tensor]:
        """Return the log-probability ``[n - 1]`` of every token but the first, given those before it.

        Sequences share forwards of at most ``budget`` tokens (more when one alone is longer); ``say`` hears how many of
        them are done.
        """
        found: list[Tensor] = []
        at = 0
        while at < len(sequences):
            end, total = at + 1, len(sequences[at])
            while end < len(sequences) and total + len(sequences[end]) <= budget:
                total += len(sequences[end])
                end += 1
            group = sequences[at:end]
            for tokens, logits in zip(group, self.logits(group, slots[at:end], start=[0] * len(group)), strict=True):
                targets = torch.tensor(tokens[1:], device=logits.device)
                found.append(torch.log_softmax(logits[:-1], dim=-1).gather(1, targets[:, None])[:, 0].cpu())
            at = end
            say(at, len(sequences))
        return found

    def close(self) -> None:
        """End the loop after the step that runs; what still waits gets an error."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _check_open(self) -> None:
        if self._closed:
            raise MintbookError("This session's engine is closed. Open a new Session.")

    def _loop(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.set_device(self.model.device)  # of this thread: Triton launches on the current device
        while True:
            with self._wake:
                while not (self._closed or self._calls or self._intake.pending) and self.scheduler.idle:
                    self._wake.wait()
                if self._closed:
                    break
            self._intake.collect()
            with self._wake:
                call = self._calls.popleft() if self._calls and self._calls_turn() else None
            began = time.perf_counter()
            contested = bool(self._calls or call) and not self.scheduler.idle
            if call is not None:
                self._run_call(*call)
            elif not self.scheduler.idle:
                self._guarded_step()
            self._settle(time.perf_counter() - began, called=call is not None, contested=contested)
        self._fail_all(MintbookError("The session was closed before this was done."))

    def _calls_turn(self) -> bool:
        return self.scheduler.idle or self._owed_s >= 0

    def _settle(self, seconds: float, *, called: bool, contested: bool) -> None:
        """Keep what steps owe calls in time; nothing is owed for time that only one of them wanted."""
        if contested:
            self._owed_s += -seconds * (1 - self.call_share) if called else seconds * self.call_share
        else:
            self._owed_s = 0.0

    def _run_call(self, work: Callable[[PackedModel], Any], future: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work(self.model))
        except BaseException as error:  # noqa: BLE001 — it belongs to the caller, who gets it whole
            future.set_exception(error)

    def _guarded_step(self) -> None:
        try:
            self._stepper.step()
        except Exception as error:  # noqa: BLE001 — nobody knows whose fault it is; the loop lives on
            for sequence in self.scheduler.running.copy() or self.scheduler.waiting:
                self._stepper.fail(sequence, error)

    def _fail_all(self, error: MintbookError) -> None:
        for _, future in self._calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        self._calls.clear()
        self._intake.fail_all(error)
        for sequence in [*self.scheduler.running, *self.scheduler.waiting]:
            self._stepper.fail(sequence, error)
