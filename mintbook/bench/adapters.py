"""Random adapters that change every answer: as pages, in the slots of an engine, and as PEFT folders for the peers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from mintbook.engine.engine import Engine
from mintbook.model.packed_model import PackedModel
from mintbook.store.page import Page, Site
from mintbook.store.peft_format import write_peft

SCALE = 2.0
_SIZE = 0.3  # with half of it, one adapter's greedy tokens often pass for another's in bf16


def random_page(sites: Sequence[Site], rank: int, *, seed: int, dtype: torch.dtype) -> Page:
    """Return a page of one rank on every site, A and B both Gaussian: ``s · B A x`` has 0.6 of the size of ``x``.

    An entry of A has variance 1 / H and one of B 0.3² / r, with s = 2; B is nowhere zero, as after a training.
    """
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(rank, sum(site.width for site in sites), generator=generator)
    page = Page(tensor=tensor, sites=tuple(sites), ranks=(rank,) * len(sites), scales=(SCALE,) * len(sites))
    for site, (a, bt) in zip(sites, page.factors().values(), strict=True):
        a.mul_(1 / math.sqrt(site.in_features))
        bt.mul_(_SIZE / math.sqrt(rank))
    return page.like(tensor.to(dtype))


def random_pages(engine: Engine, ranks: Sequence[int]) -> list[Page]:
    """Return a page per rank for the engine's base, in its precision; page i is the same whatever the others are."""
    model = engine.model
    return [random_page(model.sites, rank, seed=i, dtype=model.bank.tensor.dtype) for i, rank in enumerate(ranks)]


@contextmanager
def in_slots(engine: Engine, pages: Sequence[Page]) -> Iterator[list[int]]:
    """Keep the pages in slots of their own for the length of a ``with`` block; no store is involved."""
    slots: list[int] = []

    def load(model: PackedModel) -> None:
        slots.extend(model.bank.load(page) for page in pages)

    def free(model: PackedModel) -> None:
        for slot in slots:
            model.bank.free(slot)

    try:
        engine.call(load)
        yield slots
    finally:
        engine.call(free)


def write_folders(pages: Sequence[Page], folder: Path, *, base: str, digest: str) -> list[Path]:
    """Write each page as a PEFT folder under ``folder`` and return their paths."""
    folders = [folder / f"a{i}" for i in range(len(pages))]
    for page, path in zip(pages, folders, strict=True):
        write_peft(page, path, base_model_name=base, base_digest=digest, sites=page.sites)
    return folders
