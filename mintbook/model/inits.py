"""How an adapter's factors start."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mintbook.config import LoraConfig
from mintbook.errors import ShapeError
from mintbook.store.page import Page, Site


def initial_page(sites: Sequence[Site], config: LoraConfig) -> Page:
    """Return the page an adapter starts from: B = 0 everywhere, so that it computes exactly what the base computes.

    A ``[r, H]`` has orthonormal rows (``orthonormal``: the Q of a Gaussian matrix's QR) or Kaiming-uniform entries in
    ±1/√H (``peft``, what PEFT 0.21 starts from). Both are drawn from ``config.seed`` alone, site after site.
    """
    generator = torch.Generator().manual_seed(config.seed)
    draw = _orthonormal if config.init == "orthonormal" else _kaiming
    page = Page(
        tensor=torch.zeros(config.rank, sum(site.width for site in sites)),
        sites=tuple(sites),
        ranks=(config.rank,) * len(sites),
        scales=(config.scale,) * len(sites),
    )
    for site, (a, _) in zip(sites, page.factors().values(), strict=True):
        a.copy_(draw(config.rank, site, generator))
    return page


def _orthonormal(rank: int, site: Site, generator: torch.Generator) -> Tensor:
    if rank > site.in_features:
        raise ShapeError(
            f"{site.name} has {site.in_features} inputs: {rank} orthonormal rows do not exist. "
            f"Use rank ≤ {site.in_features}, or init='peft'."
        )
    # The sign makes Q unique: QR leaves it to the library.
    q, r = torch.linalg.qr(torch.randn(site.in_features, rank, generator=generator))
    rows: Tensor = (q * torch.sign(torch.diagonal(r))).T
    return rows


def _kaiming(rank: int, site: Site, generator: torch.Generator) -> Tensor:
    bound = 1 / math.sqrt(site.in_features)
    return torch.empty(rank, site.in_features).uniform_(-bound, bound, generator=generator)
