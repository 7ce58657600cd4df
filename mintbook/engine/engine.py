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
from mintbook.engine.detokenizer import Detokenizer
from mintbook.engine.request import Chunk, Completion, Generation, Request, StopReason
from mintbook.engine.sampler import choose
from mintbook.engine.scheduler import Scheduler
from mintbook.engine.scheduler import Sequence as Running
from mintbook.errors import CapacityError, ConfigError, MintbookError
from mintbook.model.batch import PackedBatch, Piece
from mintbook.model.kv_cache import KVCache
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
        self.scheduler = Scheduler(self.cache, max_sequences=config.max_sequences, prefill_tokens=config.prefill_tokens)
        self._calls: deque[tuple[Callable[[PackedModel], Any], Future[Any]]] = deque()
        self._wake = threading.Condition()
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

    def submit(self, request: Request, on_end: Callable[[], None] = lambda: None) -> Generation:
        """Enqueue a request; raise `CapacityError` when it could never fit, whatever else is running."""
        generation = Generation(request, on_end)
        needed = self.scheduler.needed_tokens(generation)
        if needed > self.cache.capacity_tokens:
            raise CapacityError(
                f"A prompt of {len(request.tokens)} tokens with max_tokens={request.sampling.max_tokens} needs "
                f"{needed} KV-cache tokens; the cache has {self.cache.capacity_tokens}. "
                "Shorten it, or open the session with more kv_tokens."
            )
        if not request.tokens:
            raise ConfigError("The prompt has no tokens. Give at least one.")
        with self._wake:
            self._check_open()
            self.scheduler.waiting.append(generation)
            self._wake.notify()
        return generation

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
        while True:
            with self._wake:
                while not self._closed and not self._calls and self.scheduler.idle:
                    self._wake.wait()
                if self._closed:
                    break
                call = self._calls.popleft() if self._calls and self._calls_turn() else None
            began = time.perf_counter()
            contested = bool(self._calls or call) and not self.scheduler.idle
            if call is not None:
                self._run_call(*call)
            else:
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
            self._step()
        except Exception as error:  # noqa: BLE001 — every request of the step gets it; the loop lives on
            for sequence in list(self.scheduler.running):
                self.scheduler.drop(sequence)
                self._end(sequence.generation, error)

    def _step(self) -> None:
        self._admit()
        for sequence in [s for s in self.scheduler.running if s.generation.cancelled]:
            self._finish(sequence, "cancelled")
        planned = self.scheduler.plan()
        if not planned:
            return
        batch = PackedBatch.of([piece for _, piece in planned], device=self.model.device, cache=self.cache)
        done = []
        for (sequence, piece), row in zip(planned, batch.last_rows(), strict=True):
            sequence.read += len(piece.tokens)
            if sequence.read == len(sequence.tokens):
                done.append((sequence, row))
        keep = torch.stack([row for _, row in done]) if done else batch.last_rows()[:1]
        logits = self.model.logits(batch, keep)
        for (sequence, _), row in zip(done, logits, strict=False):
            try:
                self._say(sequence, *choose(row, sequence.generation.request, sequence.generator))
            except Exception as error:  # noqa: BLE001 — it is this request's alone; the others go on
                self.scheduler.drop(sequence)
                self._end(sequence.generation, error)

    def _admit(self) -> None:
        while (generation := self.scheduler.next_to_admit()) is not None:
            request = generation.request
            if generation.cancelled:
                self._end(generation, self._answer(request, "", (), (), "cancelled"))
                continue
            try:
                detokenizer = Detokenizer(self.tokenizer, request.sampling.stop)
                generator = torch.Generator().manual_seed(request.sampling.seed)
                table = self.cache.allocate(len(request.tokens) + request.sampling.max_tokens)
            except Exception as error:  # noqa: BLE001 — it is this request's alone
                self._end(generation, error)
                continue
            self.scheduler.running.append(Running(generation, table, detokenizer, generator, list(request.tokens)))

    def _say(self, sequence: Running, token: int, logprob: float | None) -> None:
        request = sequence.generation.request
        sequence.answer.append(token)
        if logprob is not None:
            sequence.logprobs.append(logprob)
        if token in request.end_ids:
            self._finish(sequence, "end")
            return
        sequence.tokens.append(token)
        text = sequence.detokenizer.add(token)
        sequence.generation.put(Chunk(text, (token,)))
        if sequence.detokenizer.stopped:
            self._finish(sequence, "stop")
        elif len(sequence.answer) == request.sampling.max_tokens:
            self._finish(sequence, "length")

    def _finish(self, sequence: Running, reason: StopReason) -> None:
        rest = sequence.detokenizer.finish()
        self.scheduler.drop(sequence)
        if rest:
            sequence.generation.put(Chunk(rest, ()))
        text = sequence.detokenizer.text
        self._end(
            sequence.generation,
            self._answer(sequence.generation.request, text, sequence.answer, sequence.logprobs, reason),
        )

    @staticmethod
    def _answer(
        request: Request, text: str, tokens: Sequence[int], logprobs: Sequence[float], reason: StopReason
    ) -> Completion:
        return Completion(
            text=text,
            tokens=tuple(tokens),
            logprobs=tuple(logprobs) if request.sampling.logprobs else None,
            revision=request.revision,
            digest=request.digest,
            stop_reason=reason,
            prompt_tokens=len(request.tokens),
        )

    def _end(self, generation: Generation, item: Completion | BaseException) -> None:
        generation.on_end()
        generation.put(item)

    def _fail_all(self, error: MintbookError) -> None:
        for _, future in self._calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        self._calls.clear()
        for generation in [*self.scheduler.waiting, *(s.generation for s in self.scheduler.running)]:
            self._end(generation, error)
        self.scheduler.waiting.clear()
        self.scheduler.running.clear()
