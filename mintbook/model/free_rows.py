"""Which rank-rows of the slot bank are free, as runs of neighbours."""

from __future__ import annotations

from bisect import bisect_left, insort


class FreeRows:
    """Free runs ``[start, end)`` of ``count`` rows; taking and giving back cost by the gaps, not by what is taken.

    >>> free = FreeRows(10)
    >>> free.take(4), free.take(2), free.total
    (0, 4, 4)
    >>> free.give(0, 4)
    >>> free.take(5) is None, free.take(3)
    (True, 0)
    """

    def __init__(self, count: int) -> None:
        self._runs: list[tuple[int, int]] = [(0, count)] if count else []
        self.total = count

    def take(self, count: int) -> int | None:
        """Return the first row of the first run that is long enough, now taken, or ``None``."""
        for at, (start, end) in enumerate(self._runs):
            if end - start >= count:
                if end - start == count:
                    del self._runs[at]
                else:
                    self._runs[at] = (start + count, end)
                self.total -= count
                return start
        return None

    def give(self, start: int, count: int) -> None:
        """Give rows back; they join the runs beside them."""
        self.total += count
        end = start + count
        at = bisect_left(self._runs, (start, end))
        if at < len(self._runs) and self._runs[at][0] == end:
            end = self._runs.pop(at)[1]
        if at and self._runs[at - 1][1] == start:
            start = self._runs.pop(at - 1)[0]
        insort(self._runs, (start, end))
