"""A store stocked with random adapters, a residency that loads them, and the system's memory of their files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mintbook.bench.adapters import SCALE, random_page
from mintbook.bench.setting import Setting
from mintbook.config import EngineConfig, LoraConfig
from mintbook.errors import MintbookError
from mintbook.model.base import Base, load_base
from mintbook.model.packed_model import PackedModel
from mintbook.resident import Resident
from mintbook.serve.residency import Residency
from mintbook.store.commit import Draft
from mintbook.store.manifest import Manifest
from mintbook.store.origin import code_version
from mintbook.store.page import LAYOUT, Page, Site
from mintbook.store.revisions import Revision
from mintbook.store.store import Store

TOGETHER = 16
"""Revisions of one transaction."""
DROPS = 5
"""Times that the system is asked to forget a file: one that was read just now may be held for a moment."""


def load_bench_base(setting: Setting) -> Base:
    """Load the base that a benchmark is about."""
    return load_base(setting.base, dtype=setting.dtype, device="cpu")


@contextmanager
def open_resident(setting: Setting, base: Base, room: dict[str, Any]) -> Iterator[Resident]:
    """Open an engine and a residency over a copy of a base, whatever sessions are open, on ``setting.threads`` threads.

    ``room`` has fields of `EngineConfig`.
    """
    # A copy, because a base belongs to one engine: its layers are replaced by those that know of slots.
    resident = Resident(replace(base, model=deepcopy(base.model)), EngineConfig.from_options(**room))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(setting.threads)
        # OpenMP's count belongs to a thread, and the engine has its own.
        resident.engine.call(lambda _model: torch.set_num_threads(setting.threads))
        yield resident
    finally:
        resident.engine.close()
        torch.set_num_threads(before)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder that is gone after the ``with`` block."""
    with tempfile.TemporaryDirectory(prefix="mintbook-bench-") as folder:
        yield Path(folder)


@dataclass(frozen=True, slots=True)
class Stock:
    """Revisions of random adapters, ``a0`` and on, in a store of their own."""

    store: Store
    revisions: tuple[Revision, ...]

    def spoil(self, revision: Revision) -> None:
        """Flip a bit of a revision's weights on disk."""
        path = self.file(revision)
        content = bytearray(path.read_bytes())
        content[-7] ^= 1
        path.write_bytes(content)

    def drop_from_page_cache(self, revisions: Sequence[Revision]) -> bool:
        """Ask the system to forget the revisions' files; return whether it has forgotten every one."""
        forgotten = [_forgotten(self.file(revision)) for revision in revisions]
        return all(forgotten)

    def read_into_page_cache(self, revisions: Sequence[Revision]) -> None:
        """Read the revisions' files once."""
        for revision in revisions:
            self.file(revision).read_bytes()

    def file(self, revision: Revision) -> Path:
        """Return the file of a revision's weights."""
        return self.store.path / "blobs" / revision.blob[:2] / revision.blob


def fill(store: Store, base: Base, sites: Sequence[Site], ranks: Sequence[int], say: Callable[[str], None]) -> Stock:
    """Commit a random adapter per rank in the base's precision, so that its file is the one that is served."""
    dtype = next(base.model.parameters()).dtype
    for first in range(0, len(ranks), TOGETHER):
        say(f"making adapters: {first} of {len(ranks)}")
        drafts = []
        for number in range(first, min(first + TOGETHER, len(ranks))):
            page = random_page(sites, ranks[number], seed=number, dtype=dtype)
            drafts.append(_draft(store, base, f"a{number}", page, number))
        store.commit_many(drafts)
    return Stock(store, tuple(store.resolve(f"a{number}@1") for number in range(len(ranks))))


def check_slots(resident: Resident, slots: dict[int, int]) -> None:
    """Raise `MintbookError` unless each slot holds, bit for bit, random adapter number ``slots[slot]``."""
    bank = resident.engine.model.bank
    for slot, number in slots.items():
        start, rank = int(bank.starts[slot]), int(bank.page_ranks[slot])
        page = random_page(bank.sites, rank, seed=number, dtype=bank.tensor.dtype)
        if not torch.equal(bank.tensor[start : start + rank], page.tensor):
            raise MintbookError(
                f"Slot {slot} does not hold the numbers of adapter {number}. No row was written; this is a fault of "
                "mintbook, please report it."
            )


def empty_slots(resident: Resident) -> Residency:
    """Free every slot and return a residency that knows nothing; the one before must not be used again."""

    def free(model: PackedModel) -> None:
        for found in resident.residency.residents():
            if found.slot is not None:
                model.bank.free(found.slot)

    resident.engine.call(free)
    resident.residency = Residency(resident.engine, resident.base.digest)
    return resident.residency


def _draft(store: Store, base: Base, name: str, page: Page, seed: int) -> Draft:
    lora = LoraConfig(rank=page.rank, alpha=SCALE, targets="all-linear", seed=seed)
    store.create_record(name, base_digest=base.digest, base_name=base.name, lora=lora)
    dtype = str(page.tensor.dtype).removeprefix("torch.")
    manifest = Manifest(
        base_digest=base.digest,
        base_name=base.name,
        tokenizer_digest=base.digests.tokenizer,
        renderer_digest=base.renderer.digest,
        lora=lora.to_dict(),
        sites=len(page.sites),
        parameters=page.parameters,
        rank=page.rank,
        targets=tuple(site.name for site in page.sites),
        alpha=lora.alpha,
        alpha_rule=lora.alpha_rule,
        init=lora.init,
        dtype=dtype,
        layout_version=LAYOUT,
        weights_digest=page.weights_digest(base.digest),
        seed=seed,
        code_version=code_version(),
        compute_dtype=dtype,
    )
    return Draft(record=name, page=page, manifest=manifest)


def _forgotten(path: Path) -> bool:
    if not hasattr(os, "posix_fadvise") or not hasattr(os, "RWF_NOWAIT"):
        return False
    file = os.open(path, os.O_RDONLY)
    try:
        for _ in range(DROPS):
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.preadv(file, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return True  # there is nothing to read without going to the disk
    except OSError:
        return False  # a file system that cannot say
    finally:
        os.close(file)
    return False
