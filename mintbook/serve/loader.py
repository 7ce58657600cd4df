"""Cold loads as scheduled work: few at a time, a bounded line before them, and a refusal that says when to return."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from statistics import median

from mintbook.errors import CapacityError
from mintbook.serve.load_times import LoadTimes

RECENT = 256
"""Loads whose times are kept."""
FIRST_GUESS_S = 0.1
"""What a load is thought to take before there was one."""


class Loader:
    """Runs jobs in up to ``in_flight`` threads; ``queue`` more may wait. A thread ends when nothing is left to do."""

    def __init__(self, in_flight: int, queue: int) -> None:
        self.in_flight = in_flight
        self.queue = queue
        self.recent: deque[LoadTimes] = deque(maxlen=RECENT)
        self._waiting: deque[Callable[[], None]] = deque()
        self._running = 0
        self._lock = threading.Lock()

    @property
    def running(self) -> int:
        """Jobs that run now."""
        return self._running

    @property
    def queued(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    def submit(self, job: Callable[[], None]) -> None:
        """Run a job as soon as it is its turn; raise `CapacityError` when the line is full. A job must not raise."""
        with self._lock:
            if self._running < self.in_flight:
                self._running += 1
            elif len(self._waiting) < self.queue:
                self._waiting.append(job)
                return
            else:
                raise CapacityError(
                    f"{self._running} adapters are being read and {len(self._waiting)} wait to be. Ask again in "
                    f"{self.retry_after_s:.2g} s, or open the session with more load_queue.",
                    retry_after_s=self.retry_after_s,
                )
        try:
            threading.Thread(target=self._work, args=(job,), name="mintbook-loader", daemon=True).start()
        except BaseException:
            with self._lock:
                self._running -= 1
            raise

    @property
    def retry_after_s(self) -> float:
        """Seconds until about one place is free, judged by the recent loads."""
        took = [times.total - times.queue for times in list(self.recent)]
        return (median(took) if took else FIRST_GUESS_S) / self.in_flight

    def _work(self, job: Callable[[], None]) -> None:
        while True:
            job()
            with self._lock:
                if not self._waiting:
                    self._running -= 1
                    return
                job = self._waiting.popleft()
