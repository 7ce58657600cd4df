"""Random weights of rank 2, a manifest that tells the truth about them, and a record that they fit."""

from __future__ import annotations

from typing import Any

import torch

from mintbook.config import LoraConfig
from mintbook.store.manifest import Manifest
from mintbook.store.page import LAYOUT, Page, Site
from mintbook.store.store import Store

BASE = "b" * 64
LORA = LoraConfig(rank=2)
SITES = (Site("layers.0.q_proj", 4, 6), Site("layers.0.up_proj", 3, 5))


def tiny_page(seed: int = 0) -> Page:
    """Return random weights of rank 2."""
    numbers = torch.randn(2, 18, generator=torch.Generator().manual_seed(seed))
    return Page(numbers, SITES, (2, 1), (1.0, 2.0))


def manifest_of(page: Page, **changed: Any) -> Manifest:
    """Return a manifest that tells the truth about ``page``, except where it is ``changed``."""
    truth = {
        "base_digest": BASE,
        "base_name": "tiny",
        "tokenizer_digest": "t" * 64,
        "renderer_digest": "r" * 64,
        "lora": LORA.to_dict(),
        "sites": len(page.sites),
        "parameters": page.parameters,
        "rank": page.rank,
        "targets": tuple(site.name for site in page.sites),
        "alpha": LORA.alpha,
        "alpha_rule": LORA.alpha_rule,
        "init": LORA.init,
        "dtype": "float32",
        "layout_version": LAYOUT,
        "weights_digest": page.weights_digest(BASE),
        "seed": 0,
        "code_version": "0.0",
        "created": "2026-01-01T00:00:00.000000+00:00",
    }
    return Manifest(**{**truth, **changed})


def add_record(store: Store, name: str) -> None:
    """Make a record that `tiny_page` fits."""
    store.create_record(name, base_digest=BASE, base_name="tiny", lora=LORA)
