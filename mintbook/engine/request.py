"""What is asked of the engine, and what it answers."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mintbook.config import SampleConfig
from mintbook.errors import MintbookError
from mintbook.model.batch import NO_ADAPTER

StopReason = Literal["end", "stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt and how to continue it, with the adapter in ``slot``.

    ``revision`` and ``digest`` are what the answer will say it came from; ``end_ids`` are tokens that end an answer.
    """

    tokens: tuple[int, ...]
    sampling: SampleConfig
    revision: str
    end_ids: frozenset[int]
    digest: str = ""
    slot: int = NO_ADAPTER


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """An answer: its text and tokens, where it came from and why it ended.

    ``revision`` names what answered, ``alice@3`` or ``base``, and ``digest`` is its sha256: a name can come to mean
    something else, a digest cannot.
    ``stop_reason`` is ``end`` (the model ended its turn), ``stop`` (a stop text), ``length`` (max_tokens) or
    ``cancelled``. ``logprobs`` has the natural log-probability of every token under the unmodified distribution.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    revision: str
    digest: str
    stop_reason: StopReason
    prompt_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer as it is made: text, and the tokens that made it."""

    text: str
    tokens: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Generation:
    """An answer in the making; iterate it for its chunks, or ask for its `result`.

    ``on_end`` is called once, in the engine's thread, when the engine is done with the request however it ended.
    """

    request: Request
    on_end: Callable[[], None] = lambda: None
    cancelled: bool = False
    _queue: queue.SimpleQueue[Chunk | Completion | BaseException] = field(default_factory=queue.SimpleQueue)
    _answer: Completion | None = None
    _error: BaseException | None = None

    def __iter__(self) -> Iterator[Chunk]:
        while self._answer is None and self._error is None:
            item = self._queue.get()
            self._take(item)
            if isinstance(item, Chunk):
                yield item
        if self._error is not None:
            raise self._error

    @property
    def done(self) -> bool:
        """Whether somebody has received the whole answer, or the error."""
        return self._answer is not None or self._error is not None

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end, dropping chunks, but not longer than ``timeout_s``; return whether it has come."""
        until = time.monotonic() + timeout_s
        while not self.done:
            try:
                item = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return False
            self._take(item)
        return True

    def result(self) -> Completion:
        """Wait for the whole answer; raise what made the request fail."""
        for _ in self:
            pass
        if self._answer is None:
            raise MintbookError(
                "The generation ended without an answer. This is a fault of mintbook; please report it."
            )
        return self._answer

    def cancel(self) -> None:
        """Ask the engine to drop the request at its next step; the answer so far comes with ``cancelled``."""
        self.cancelled = True

    def _take(self, item: Chunk | Completion | BaseException) -> None:
        if isinstance(item, Chunk):
            return
        if isinstance(item, Completion):
            self._answer = item
        else:
            self._error = item
        self._queue.put(item)  # for whoever else waits

    def put(self, item: Chunk | Completion | BaseException) -> None:
        """Hand a chunk, the answer or an error to whoever waits (the engine calls this)."""
        self._queue.put(item)
