"""Pages in memory beside the slots: in the slots' precision and layout, so that activating one is one copy."""

from __future__ import annotations

from collections import OrderedDict

from mintbook.errors import CapacityError
from mintbook.store.page import Page


class HostCache:
    """At most ``capacity`` bytes of pages by weights digest; the longest unused gives way, a pinned one never does.

    Nothing here locks: its owner does.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used_bytes = 0
        self.evictions = 0
        self._pages: OrderedDict[str, Page] = OrderedDict()
        self._pinned: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._pages

    def __len__(self) -> int:
        return len(self._pages)

    @property
    def pinned_bytes(self) -> int:
        """Bytes that never give way."""
        return sum(self._pages[key].tensor.nbytes for key in self._pinned)

    def get(self, key: str) -> Page | None:
        """Return a page, now the last used, or ``None``."""
        page = self._pages.get(key)
        if page is not None:
            self._pages.move_to_end(key)
        return page

    def put(self, key: str, page: Page) -> None:
        """Keep a page if there is room for it beside the pinned ones."""
        if key in self._pages or page.tensor.nbytes + self.pinned_bytes > self.capacity:
            return
        self._pages[key] = page
        self.used_bytes += page.tensor.nbytes
        for other in [k for k in self._pages if k not in self._pinned] if self.used_bytes > self.capacity else []:
            if self.used_bytes <= self.capacity:
                break
            self.used_bytes -= self._pages.pop(other).tensor.nbytes
            self.evictions += 1

    def pin(self, key: str, page: Page, what: str) -> None:
        """Keep a page until `unpin`; raise `CapacityError` when the pinned ones would not fit together."""
        needed = self.pinned_bytes + (0 if key in self._pinned else page.tensor.nbytes)
        if needed > self.capacity:
            raise CapacityError(
                f"Pinning {what} in memory needs {needed} bytes with what is pinned already; the host cache has "
                f"{self.capacity}. Unpin others, or open the session with more host_cache_bytes."
            )
        self.put(key, page)
        self._pinned.add(key)

    def unpin(self, key: str) -> None:
        """Let a page give way again."""
        self._pinned.discard(key)

    def pinned(self, key: str) -> bool:
        """Return whether a page is pinned."""
        return key in self._pinned
