"""An answer in the making, for callers that wait in a thread and for those that await."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import suppress

from mintbook.engine.request import Chunk, Completion, Request
from mintbook.errors import MintbookError

Waiter = tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]


class Generation:
    """An answer in the making: iterate it for its chunks, ask for its `result`, or ``await`` it.

    It keeps its chunks, and every iterator gives all of them from the first: consumers take nothing from each other. A
    plain ``for`` may be left early and the answer goes on. Leaving an ``async for`` early, or cancelling a task that
    awaits the answer, cancels the request: the reader of a stream that nobody reads any more has gone.
    """

    def __init__(self, request: Request, on_end: Callable[[], None] = lambda: None) -> None:
        self.request = request
        self.cancelled = False
        self.on_cancel: Callable[[], None] = lambda: None
        """How the engine hears of a cancellation, in the thread that cancels."""
        self._on_end = on_end
        self._chunks: list[Chunk] = []
        self._end: Completion | BaseException | None = None
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        self._ended = threading.Condition(lock)  # apart, so that a token wakes no one who waits for the end
        self._waiters: list[Waiter] = []
        self._end_waiters: list[Waiter] = []

    @property
    def done(self) -> bool:
        """Whether the answer, or the error, is there."""
        return self._end is not None

    def __iter__(self) -> Iterator[Chunk]:
        at = 0
        while True:
            with self._changed:
                while len(self._chunks) <= at and not self.done:
                    self._changed.wait()
            if at == len(self._chunks):
                break
            yield self._chunks[at]
            at += 1
        self._answer()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        at = 0
        try:
            while await self._more(at):
                yield self._chunks[at]
                at += 1
        finally:
            self._leave()
        self._answer()

    def __await__(self) -> Generator[object, None, Completion]:
        return self._awaited().__await__()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end, but not longer than ``timeout_s``; return whether it has come."""
        with self._ended:
            return self._ended.wait_for(lambda: self.done, timeout_s)

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the whole answer.

        Raises what made the request fail, and `TimeoutError` when it has not ended after ``timeout`` seconds; then it
        goes on.
        """
        if not self.wait(timeout):
            raise TimeoutError(f"{self.request.revision} has not ended its answer after {timeout:g} s; it goes on.")
        return self._answer()

    def cancel(self) -> None:
        """Ask the engine to drop the request at its next step; the answer so far comes with ``cancelled``."""
        if not self.done and not self.cancelled:
            self.cancelled = True
            self.on_cancel()

    def put(self, chunk: Chunk) -> None:
        """Hand on a chunk (the engine calls this)."""
        with self._changed:
            self._chunks.append(chunk)
            self._changed.notify_all()
            waiters, self._waiters = self._waiters, []
        _wake_all(waiters)

    def end(self, item: Completion | BaseException) -> None:
        """Hand on the answer or an error; ``on_end`` runs before anyone hears of it (the engine calls this, once)."""
        try:
            self._on_end()
        except Exception as error:  # noqa: BLE001 — it is this request's alone, and its consumers get it
            item = error
        with self._changed:
            self._end = item
            self._changed.notify_all()
            self._ended.notify_all()
            waiters, self._waiters, self._end_waiters = [*self._waiters, *self._end_waiters], [], []
        _wake_all(waiters)

    def _answer(self) -> Completion:
        if isinstance(self._end, BaseException):
            raise self._end
        if self._end is None:
            raise MintbookError("The stream ended before its answer. This is a fault of mintbook; please report it.")
        return self._end

    async def _awaited(self) -> Completion:
        try:
            await self._until(lambda: self.done, end_only=True)
        finally:
            self._leave()
        return self._answer()

    async def _more(self, at: int) -> bool:
        """Wait until there is a chunk number ``at`` or the end, and return whether there is such a chunk."""
        await self._until(lambda: len(self._chunks) > at or self.done, end_only=False)
        return len(self._chunks) > at

    async def _until(self, holds: Callable[[], bool], *, end_only: bool) -> None:
        loop = asyncio.get_running_loop()
        while True:
            waiter = loop.create_future()
            with self._changed:
                if holds():
                    return
                (self._end_waiters if end_only else self._waiters).append((loop, waiter))
            await waiter

    def _leave(self) -> None:
        if not self.done:
            self.cancel()


def _wake_all(waiters: list[Waiter]) -> None:
    for loop, waiter in waiters:
        with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
            loop.call_soon_threadsafe(_wake, waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
