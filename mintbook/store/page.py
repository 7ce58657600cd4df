"""An adapter's factors as one page of rank-rows: the layout that is trained, stored, loaded and served."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mintbook.errors import ShapeError

LAYOUT = "rank-rows/1"


@dataclass(frozen=True, slots=True)
class Site:
    """One linear layer of the base that an adapter may change: ``y [T, O] = x [T, H] Wᵀ``."""

    name: str
    in_features: int
    out_features: int

    @property
    def width(self) -> int:
        """Numbers that one rank-row spends on this site: H for its row of A, O for its row of Bᵀ."""
        return self.in_features + self.out_features


@dataclass(frozen=True, slots=True)
class Page:
    """The factors of one adapter; row r holds, site after site, row r of A and row r of Bᵀ.

    ``tensor`` is ``[R, W]`` with R the largest rank and W the sum of the sites' widths. A site whose rank is smaller
    has zeros below it. The update of site m is ``ΔW_m = scale_m · B_m A_m``.
    """

    tensor: Tensor
    sites: tuple[Site, ...]
    ranks: tuple[int, ...]
    scales: tuple[float, ...]

    def __post_init__(self) -> None:
        width = sum(site.width for site in self.sites)
        if not self.sites or not len(self.sites) == len(self.ranks) == len(self.scales):
            raise ShapeError(
                f"A page needs a rank and a scale for each of its sites; it has {len(self.sites)} sites, "
                f"{len(self.ranks)} ranks and {len(self.scales)} scales."
            )
        if tuple(self.tensor.shape) != (max(self.ranks), width):
            raise ShapeError(
                f"The page is {list(self.tensor.shape)}; "
                f"its sites and ranks ask for {[max(self.ranks), width]} (rank, width)."
            )

    @property
    def rank(self) -> int:
        """The largest rank, which is the number of rank-rows."""
        return int(self.tensor.shape[0])

    @property
    def parameters(self) -> int:
        """Numbers that belong to the adapter, padding of smaller ranks left out."""
        return sum(rank * site.width for rank, site in zip(self.ranks, self.sites, strict=True))

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return views ``name → (A [r, H], Bᵀ [r, O])``; writing to them writes to the page."""
        views = {}
        at = 0
        for site, rank in zip(self.sites, self.ranks, strict=True):
            middle, end = at + site.in_features, at + site.width
            views[site.name] = (self.tensor[:rank, at:middle], self.tensor[:rank, middle:end])
            at = end
        return views

    def like(self, tensor: Tensor) -> Page:
        """Return a page of the same shape that holds other numbers."""
        return replace(self, tensor=tensor)

    def to(self, dtype: torch.dtype) -> Page:
        """Return the page with its numbers rounded to another precision; itself when it has that one."""
        return self if self.tensor.dtype == dtype else self.like(self.tensor.to(dtype))

    def pinned(self) -> Page:
        """Return a copy in pinned host memory, from which a GPU is filled while the host goes on."""
        return self.like(self.tensor.pin_memory())

    def weights_digest(self, base_digest: str) -> str:
        """Return the sha256 over base, sites, ranks, scales and the bytes of the numbers.

        It is equal exactly for equal effect.
        """
        sha = hashlib.sha256()
        sha.update(json.dumps({"base": base_digest, **self.layout()}, sort_keys=True).encode())
        sha.update(self.tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return sha.hexdigest()

    def save(self, path: Path) -> None:
        """Write the page as a safetensors file that names its own layout."""
        save_file(
            {"page": self.tensor.detach().cpu().contiguous()}, path, metadata={"mintbook": json.dumps(self.layout())}
        )

    def layout(self) -> dict[str, Any]:
        """Return all that is not the numbers, as plain data: what the file's header says."""
        return {
            "layout": LAYOUT,
            "dtype": str(self.tensor.dtype).removeprefix("torch."),
            "sites": [[site.name, site.in_features, site.out_features] for site in self.sites],
            "ranks": list(self.ranks),
            "scales": list(self.scales),
        }
