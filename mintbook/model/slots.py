"""The slot bank: every adapter that a forward can use now, as rank-rows of one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mintbook_kernels import Factors, Segments
from torch import Tensor

from mintbook.errors import CapacityError, TargetError
from mintbook.store.page import Page, Site


class SlotBank:
    """Rank-rows ``[N, W]`` in the base's precision; a slot is a run of them that holds one adapter's page.

    An adapter of rank r takes r rows, whatever the others' ranks are, and loading one is one copy where it adapts every
    layer. A row that no slot owns is never read. Slots are numbered from 0; the number of a freed slot may be used
    again, which is why "no adapter" is −1 and never a slot.
    """

    def __init__(self, sites: Sequence[Site], *, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self.sites = tuple(sites)
        self.rows = rows
        self.tensor = torch.empty((rows, sum(site.width for site in sites)), dtype=dtype, device=device)
        self.starts = torch.zeros(rows, dtype=torch.int64, device=device)
        self.page_ranks = torch.zeros(rows, dtype=torch.int32, device=device)
        self._ranks = torch.zeros((len(sites), rows), dtype=torch.int32, device=device)
        self._scales = torch.zeros((len(sites), rows), dtype=torch.float32, device=device)
        self._taken: dict[int, tuple[int, int]] = {}
        self._columns: dict[str, int] = {}
        self.factors: list[Factors] = []
        at = 0
        for index, site in enumerate(sites):
            self._columns[site.name] = at
            middle, end = at + site.in_features, at + site.width
            self.factors.append(
                Factors(
                    a=self.tensor[:, at:middle],
                    b=self.tensor[:, middle:end],
                    start=self.starts,
                    rank=self._ranks[index],
                    scale=self._scales[index],
                )
            )
            at = end

    @property
    def free_rows(self) -> int:
        """Rank-rows that no slot owns."""
        return self.rows - sum(count for _, count in self._taken.values())

    @property
    def used_bytes(self) -> int:
        """Bytes of the rows that slots own."""
        return (self.rows - self.free_rows) * self.tensor.shape[1] * self.tensor.element_size()

    def load(self, page: Page) -> int:
        """Copy a page into free rows and return its slot; raise `CapacityError` when no run of rows is long enough."""
        indices = self._indices(page)
        start = self._free_run(page.rank)
        slot = next(number for number in range(self.rows) if number not in self._taken)
        self._taken[slot] = (start, page.rank)
        self.starts[slot] = start
        self.page_ranks[slot] = page.rank
        self._ranks[:, slot] = 0
        chosen = torch.tensor(indices, device=self._ranks.device)
        self._ranks[chosen, slot] = torch.tensor(page.ranks, dtype=torch.int32, device=self._ranks.device)
        self._scales[chosen, slot] = torch.tensor(page.scales, device=self._scales.device)
        self.write(slot, page)
        return slot

    def write(self, slot: int, page: Page) -> None:
        """Overwrite a slot's numbers with those of a page of the same layout, rounded to the bank's precision."""
        start, rank = self._taken[slot]
        for source, column, width in self._runs(page.sites):
            self.tensor[start : start + rank, column : column + width].copy_(page.tensor[:, source : source + width])

    def free(self, slot: int) -> None:
        """Give a slot's rows back."""
        del self._taken[slot]
        self._ranks[:, slot] = 0
        self.page_ranks[slot] = 0

    def segments(self, row_slots: Tensor) -> Segments:
        """Sort a batch's rows by slot, once for all layers of a forward."""
        return Segments.of(row_slots, self.starts, self.page_ranks)

    def _indices(self, page: Page) -> list[int]:
        index_of = {site: index for index, site in enumerate(self.sites)}
        for site in page.sites:
            if site not in index_of:
                raise TargetError(
                    f"The adapter changes {site.name} ({site.in_features} → {site.out_features}), "
                    "which this base lacks."
                )
        return [index_of[site] for site in page.sites]

    def _runs(self, sites: Sequence[Site]) -> list[tuple[int, int, int]]:
        """Return (column in the page, column in the bank, width) of every stretch that lies side by side in both."""
        runs: list[tuple[int, int, int]] = []
        source = 0
        for site in sites:
            column = self._columns[site.name]
            if runs and runs[-1][1] + runs[-1][2] == column:
                runs[-1] = (runs[-1][0], runs[-1][1], runs[-1][2] + site.width)
            else:
                runs.append((source, column, site.width))
            source += site.width
        return runs

    def _free_run(self, count: int) -> int:
        at = 0
        for start, length in sorted(self._taken.values()):
            if start - at >= count:
                return at
            at = start + length
        if self.rows - at >= count:
            return at
        raise CapacityError(
            f"No {count} adjacent rank-rows are free in the slot bank "
            f"({self.free_rows} of {self.rows} are free in all). "
            "Wait for a request to end, or open the session with more slot_rows."
        )
