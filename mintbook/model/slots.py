"""The slot bank: every adapter that a forward can use now, as rank-rows of one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from mintbook_kernels import Factors, Segments
from torch import Tensor

from mintbook.errors import CapacityError, TargetError
from mintbook.model.free_rows import FreeRows
from mintbook.model.upload import Table, upload
from mintbook.store.page import Page, Site


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Where a page's sites lie in the bank."""

    places: Tensor
    """``[M]``: the bank's place of each of the page's sites."""
    runs: tuple[tuple[int, int, int], ...]
    """(column in the page, column in the bank, width) of every stretch that lies side by side in both."""


class SlotBank:
    """Rank-rows ``[N, W]`` in the base's precision; a slot is a run of them that holds one adapter's page.

    An adapter of rank r takes r rows, whatever the others' ranks are, and loading one is one copy where it adapts every
    layer. A row that no slot owns is never read. Slots are numbered from 0; the number of a freed slot may be used
    again, which is why "no adapter" is −1 and never a slot. What loading and freeing cost does not depend on how many
    slots are taken.

    ``groups`` are the sites whose layers read one input, as indices of ``sites``: one `Factors` each.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        groups: Sequence[Sequence[int]],
        *,
        rows: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.sites = tuple(sites)
        self.groups = tuple(tuple(group) for group in groups)
        self.rows = rows
        self.tensor = torch.empty((rows, sum(site.width for site in sites)), dtype=dtype, device=device)
        self.starts = torch.zeros(rows, dtype=torch.int64, device=device)
        # Segments are made on the host, at every step: what they are made of is kept there too.
        self._starts_here = torch.zeros(rows, dtype=torch.int64)
        self.page_ranks = torch.zeros(rows, dtype=torch.int32)
        self._ranks = torch.zeros((len(sites), rows), dtype=torch.int32, device=device)
        self._scales = torch.zeros((len(sites), rows), dtype=torch.float32, device=device)
        self._taken: dict[int, tuple[int, int]] = {}
        self._free_rows = FreeRows(rows)
        self._free_slots = list(range(rows - 1, -1, -1))
        self._placements: dict[tuple[Site, ...], Placement] = {}
        self._columns: list[int] = []
        at = 0
        for site in sites:
            self._columns.append(at)
            at += site.width
        self._places = {index: place for place, index in enumerate(i for group in self.groups for i in group)}
        self.factors = tuple(self._factors(group) for group in self.groups)

    @property
    def free_rows(self) -> int:
        """Rank-rows that no slot owns."""
        return self._free_rows.total

    @property
    def used_bytes(self) -> int:
        """Bytes of the rows that slots own."""
        return (self.rows - self.free_rows) * self.tensor.shape[1] * self.tensor.element_size()

    def placement(self, sites: tuple[Site, ...]) -> Placement:
        """Return where the sites of a page lie; raise `TargetError` for a site that this base lacks."""
        if sites not in self._placements:
            index_of = {site: index for index, site in enumerate(self.sites)}
            for site in sites:
                if site not in index_of:
                    raise TargetError(
                        f"The adapter changes {site.name} ({site.in_features} → {site.out_features}), "
                        "which this base lacks."
                    )
            indices = [index_of[site] for site in sites]
            places = torch.tensor([self._places[index] for index in indices], device=self.tensor.device)
            self._placements[sites] = Placement(places, self._runs(sites, indices))
        return self._placements[sites]

    def load(self, page: Page) -> int:
        """Copy a page into free rows and return its slot; raise `CapacityError` when too few rows are free.

        Where enough are free but not side by side, other slots move together until they are: their numbers stay.
        """
        placement = self.placement(page.sites)
        if page.rank > self.free_rows:
            raise CapacityError(
                f"The adapter takes {page.rank} rank-rows of the slot bank, and {self.free_rows} of {self.rows} are "
                "free. Wait for a request to end, or open the session with more slot_rows."
            )
        start = self._free_rows.take(page.rank)
        if start is None:
            start = self._close_gaps(page.rank)
        slot = self._free_slots.pop()
        self._settle(slot, start, page.rank)
        self.page_ranks[slot] = page.rank
        device = self.tensor.device
        ranks, scales = np.array(page.ranks, np.int32), np.array(page.scales, np.float32)
        on_device = upload([ranks, scales.view(np.int32)], device)
        self._ranks[placement.places, slot] = on_device[0]
        self._scales[placement.places, slot] = on_device[1].view(torch.float32)
        self.write(slot, page)
        return slot

    def write(self, slot: int, page: Page) -> None:
        """Overwrite a slot's numbers with those of a page of the same layout, rounded to the bank's precision.

        A page in pinned memory is copied to a GPU after this returns: its numbers must not change any more.
        """
        start, rank = self._taken[slot]
        for source, column, width in self.placement(page.sites).runs:
            self.tensor[start : start + rank, column : column + width].copy_(
                page.tensor[:, source : source + width], non_blocking=True
            )

    def free(self, slot: int) -> None:
        """Give a slot's rows back."""
        self._free_rows.give(*self._taken.pop(slot))
        self._free_slots.append(slot)
        self._ranks[:, slot] = 0
        self.page_ranks[slot] = 0

    def largest_rank(self, row_slots: Table) -> int:
        """Return the largest rank of the slots in a batch's rows, 0 where there are none."""
        return int(self.page_ranks.numpy()[row_slots[row_slots >= 0]].max(initial=0))

    def segments(self, row_slots: Sequence[int] | Table) -> Segments:
        """Sort a batch's rows by slot, once for all layers of a forward; nothing is read from the device."""
        return Segments.of(row_slots, self._starts_here, self.page_ranks, device=self.tensor.device)

    def _close_gaps(self, count: int) -> int:
        """Move slots towards the first row until ``count`` free rows lie side by side, and take those."""
        for slot, (old, rank) in sorted(self._taken.items(), key=lambda item: item[1]):
            self._free_rows.give(old, rank)
            new = self._free_rows.take(rank)
            if new is not None and new != old:
                # A copy in between: the rows may overlap.
                self.tensor[new : new + rank] = self.tensor[old : old + rank].clone()
                self._settle(slot, new, rank)
            start = self._free_rows.take(count)
            if start is not None:
                return start
        raise CapacityError(f"{count} of {self.free_rows} free rank-rows were not found. Please report this.")

    def _settle(self, slot: int, start: int, rank: int) -> None:
        self._taken[slot] = (start, rank)
        self.starts[slot] = self._starts_here[slot] = start

    def _factors(self, group: tuple[int, ...]) -> Factors:
        first = self._places[group[0]]
        places = slice(first, first + len(group))
        middles = [(self._columns[i], self._columns[i] + self.sites[i].in_features, self.sites[i]) for i in group]
        return Factors(
            a=tuple(self.tensor[:, column:middle] for column, middle, _ in middles),
            b=tuple(self.tensor[:, middle : middle + site.out_features] for _, middle, site in middles),
            start=self.starts,
            rank=self._ranks[places],
            scale=self._scales[places],
        )

    def _runs(self, sites: Sequence[Site], indices: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
        runs: list[tuple[int, int, int]] = []
        source = 0
        for site, index in zip(sites, indices, strict=True):
            column = self._columns[index]
            if runs and runs[-1][1] + runs[-1][2] == column:
                runs[-1] = (runs[-1][0], runs[-1][1], runs[-1][2] + site.width)
            else:
                runs.append((source, column, site.width))
            source += site.width
        return tuple(runs)
