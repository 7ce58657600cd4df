"""A base, a store and a residency over 64 rank-rows, with means to fill, to break and to slow them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch

from mintbook.config import EngineConfig, LoraConfig
from mintbook.engine.engine import Engine
from mintbook.model.base import Base
from mintbook.model.inits import initial_page
from mintbook.model.packed_model import PackedModel
from mintbook.model.sites import choose_sites
from mintbook.serve.residency import Residency
from mintbook.store.clock import utc_now
from mintbook.store.manifest import Manifest
from mintbook.store.page import LAYOUT, Page
from mintbook.store.revisions import Revision
from mintbook.store.store import Store


class Place:
    """One base, one store, one residency; ``options`` are fields of `EngineConfig`."""

    def __init__(self, base: Base, store: Store, device: str = "cpu", **options: int) -> None:
        config = EngineConfig(**{"slot_rows": 64, "kv_tokens": 2048, **options})
        self.base, self.store = base, store
        model = PackedModel(deepcopy(base.model).to(device), slot_rows=config.slot_rows)
        self.engine = Engine(model, base.renderer.tokenizer, config)
        self.residency = Residency(self.engine, base.digest)
        self.reads: list[str] = []
        self.reading = threading.Semaphore(0)

    @property
    def bank(self):  # type: ignore[no-untyped-def]
        return self.engine.model.bank

    def page(self, rank: int = 16, seed: int = 0, targets: str = "all-linear") -> Page:
        """Return random weights that change what the base says."""
        lora = LoraConfig(rank=rank, targets=targets, init="peft", seed=seed)
        page = initial_page(choose_sites(self.bank.sites, targets), lora)
        for _, b in page.factors().values():
            b.copy_(torch.randn(b.shape, generator=torch.Generator().manual_seed(seed)) * 0.1)
        return page

    def commit(self, name: str, page: Page | None = None, **changed: object) -> Revision:
        """Commit a page to a record, which is made if there is none."""
        page = page if page is not None else self.page(seed=len(name) + sum(map(ord, name)))
        lora = LoraConfig(rank=max(1, page.rank))
        if self.store.find_record(name) is None:
            self.store.create_record(name, base_digest=self.base.digest, base_name="tiny", lora=lora)
        facts = {
            "base_digest": self.base.digest, "base_name": "tiny", "tokenizer_digest": "", "renderer_digest": "",
            "lora": lora.to_dict(), "sites": len(page.sites), "parameters": page.parameters, "rank": page.rank,
            "targets": tuple(site.name for site in page.sites), "alpha": lora.alpha, "alpha_rule": lora.alpha_rule,
            "init": lora.init, "dtype": str(page.tensor.dtype).removeprefix("torch."), "layout_version": LAYOUT,
            "weights_digest": page.weights_digest(self.base.digest), "seed": 0, "code_version": "0",
            "compute_dtype": self.base.dtype, "created": utc_now(),
        }  # fmt: skip
        return self.store.commit(name, page=page, manifest=Manifest(**{**facts, **changed}))

    def break_file(self, revision: Revision) -> None:
        """Flip one bit of the weights on disk."""
        path = self.store._blobs.path(revision.blob)
        content = bytearray(path.read_bytes())
        content[-7] ^= 1
        path.write_bytes(content)

    @contextmanager
    def gated_reads(self) -> Iterator[Callable[[int], None]]:
        """Let reads from the store begin, but end only as the yielded function lets one after the other go."""
        read, gate = self.store.serving_page, threading.Semaphore(0)

        def gated(revision, *rest):  # type: ignore[no-untyped-def]
            self.reads.append(revision.reference)
            self.reading.release()
            gate.acquire(timeout=20)
            return read(revision, *rest)

        self.store.serving_page = gated  # type: ignore[method-assign]
        try:
            yield gate.release
        finally:
            gate.release(100)
            self.store.serving_page = read  # type: ignore[method-assign]
