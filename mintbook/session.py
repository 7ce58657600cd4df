"""A session: one resident base, one store, one engine, and the nouns made from them."""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import mintbook_kernels

from mintbook.adapter import Adapter
from mintbook.config import LoraConfig
from mintbook.display import Block, Card, Facts, Table
from mintbook.display.live import Live
from mintbook.display.quantity import bytes_text, number_text
from mintbook.display.shown import Shown
from mintbook.engine.engine import Engine
from mintbook.errors import BaseMismatch, ConfigError, RecordExists
from mintbook.fleet import Fleet
from mintbook.model.base import Base, load_base
from mintbook.model.packed_model import PackedModel
from mintbook.model.sites import choose_sites, target_names
from mintbook.runtime import Runtime
from mintbook.serve.residency import Residency
from mintbook.store.peft_format import read_peft
from mintbook.store.store import Store
from mintbook.training_run import commit_page, receipt_of

SLOT_ROWS = 512
KV_TOKENS = 16_384


class _Resident:
    """A base in memory with its engine, shared by every session that asks for the same one."""

    def __init__(self, base: Base, slot_rows: int, kv_tokens: int) -> None:
        self.base = base
        self.engine = Engine(PackedModel(base.model, slot_rows=slot_rows), base.renderer.tokenizer, kv_tokens=kv_tokens)
        self.residency = Residency(self.engine, base.digest)
        self.sessions: weakref.WeakSet[Session] = weakref.WeakSet()


_residents: dict[tuple[str, str, str], _Resident] = {}
_lock = threading.Lock()


class Session(Shown):
    """Opens the store and the base, and makes adapters.

    ``base``: nothing for SmolLM2-135M-Instruct, a model folder, or a hub id. ``store``: a folder
    (default: ``MINTBOOK_STORE`` or ``~/.mintbook``). A session opened again in a re-run cell reuses the resident base.
    ``slot_rows`` bounds the ranks of all loaded adapters together, ``kv_tokens`` the tokens of all running requests.

    >>> session = Session(tiny_base_folder, store=store_folder, dtype="float32")
    >>> session.adapter("alice", rank=4)
    <Adapter alice · rank 4 · tiny · not trained>
    """

    def __init__(
        self,
        base: str | Path | None = None,
        *,
        store: str | Path | None = None,
        device: str = "cpu",
        dtype: str = "bfloat16",
        slot_rows: int = SLOT_ROWS,
        kv_tokens: int = KV_TOKENS,
    ) -> None:
        folder = Path(base).expanduser() if base is not None else None
        self._key = (str(folder.resolve() if folder is not None and folder.is_dir() else base), device, dtype)
        with _lock, Live() as live:
            resident = _residents.get(self._key)
            if resident is None:
                found = load_base(base, dtype=dtype, device=device, progress=live.line)
                resident = _Resident(found, slot_rows, kv_tokens)
                _residents[self._key] = resident
            resident.sessions.add(self)
        opened = Store.open(Path(store or os.environ.get("MINTBOOK_STORE") or Path.home() / ".mintbook").expanduser())
        self._runtime = Runtime(resident.base, opened, resident.engine, resident.residency)
        self.fleet = Fleet(self._runtime)

    @property
    def base(self) -> Base:
        """The resident base."""
        return self._runtime.base

    @property
    def store(self) -> Store:
        """The durable side: records, revisions, runs."""
        return self._runtime.store

    @property
    def engine(self) -> Engine:
        """The loop that owns every forward."""
        return self._runtime.engine

    def adapter(self, name: str, **options: Any) -> Adapter:
        """Get the adapter of that name, or create its record with ``options``, the fields of `LoraConfig`.

        Raises `ConfigError` when the record exists with other options than the ones given, and `BaseMismatch` when it
        belongs to another base.
        """
        known = self.store.find_record(name)
        if known is None:
            config = LoraConfig.from_options(**options)
            choose_sites(self.engine.model.sites, config.targets)
            try:
                self.store.create_record(name, base_digest=self.base.digest, base_name=self.base.name, lora=config)
            except RecordExists:
                known = self.store.record(name)  # another process made it between the two lines
        if known is not None:
            self._check(name, known.base_digest, known.base_name, known.lora, options)
        return Adapter(name, self._runtime)

    def import_peft(self, name: str, folder: str | Path) -> Adapter:
        """Make a new record from a PEFT adapter folder; everything about the file is checked before anything is kept.

        Raises `FormatError`, `TargetError` or `ShapeError` when mintbook cannot serve the adapter exactly, and
        `RecordExists` when the name is taken. The store is then as it was.
        """
        if self.store.find_record(name) is not None:
            raise RecordExists(f"{name} exists already. Import under another name; revisions of it come from training.")
        peft = read_peft(Path(folder), self.engine.model.sites)
        lora = LoraConfig(
            rank=peft.page.rank,
            alpha=peft.config.alpha,
            alpha_rule=peft.config.alpha_rule,
            targets=target_names(self.engine.model.sites, peft.page.sites),
            init="peft",
        )
        slot = self._runtime.residency.place(peft.page)
        try:
            facts = {
                "receipt": receipt_of(self._runtime, peft.page, slot),
                "metrics": {"imported": "peft", "base_named_there": peft.config.base_model_name},
                "seed": lora.seed,
            }
            record = self.store.create_record(name, base_digest=self.base.digest, base_name=self.base.name, lora=lora)
            commit_page(self._runtime, record, peft.page, slot, facts=facts)
        except BaseException:
            self._runtime.residency.discard(slot)
            raise
        return Adapter(name, self._runtime)

    def runs(self, limit: int = 20) -> Card:
        """Return the last runs of the store: what, of which adapter, and how they ended."""
        rows = [[r.id, r.kind, r.record, r.status] for r in self.store.runs(limit=limit)]
        table = Table(
            columns=("run", "kind", "adapter", "status"), rows=rows, empty="Nothing has run in this store yet."
        )
        return Card("Runs", "the latest first", [table])

    def close(self) -> None:
        """Close the store, and give the base's memory back when no other session uses it."""
        self.store.close()
        with _lock:
            resident = _residents.get(self._key)
            if resident is None or self not in resident.sessions:
                return
            resident.sessions.discard(self)
            if not resident.sessions:
                resident.engine.close()
                del _residents[self._key]

    def card(self) -> Card:
        """Return the base, the store and what computes what, on one card."""
        kernel = mintbook_kernels.backend(self.base.device)
        blocks: list[Block] = [
            Facts(
                [
                    ("adapters", f"{number_text(len(self.fleet))} in {self.store.path}"),
                    ("memory", self._memory()),
                    ("LoRA kernels", f"{kernel.name}: {kernel.reason}"),
                ]
            ),
            *self.base.card().blocks,
        ]
        return Card("Session", f"over {self.base.name}", blocks, badge=str(self.base.device))

    def _memory(self) -> str:
        bank, cache = self.engine.model.bank, self.engine.cache
        return (
            f"{bytes_text(self.base.bytes)} base, counted once; {bytes_text(bank.used_bytes)} loaded adapters; "
            f"{bytes_text(cache.used_bytes)} KV cache in use"
        )

    def _check(self, name: str, digest: str, base_name: str, lora: LoraConfig, options: dict[str, Any]) -> None:
        if digest != self.base.digest:
            raise BaseMismatch(
                f"{name} was made for {base_name} ({digest[:12]}); this session's base is {self.base.name} "
                f"({self.base.digest[:12]}). Open a session on its base, or use another name."
            )
        asked = LoraConfig.from_options(**{**lora.to_dict(), **options})
        if asked != lora:
            other = ", ".join(f"{k}={getattr(lora, k)!r}" for k in options if getattr(asked, k) != getattr(lora, k))
            raise ConfigError(
                f"{name} exists with {other}; a record's shape does not change. "
                "Leave the options out, or use another name."
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Session · {self.base.name} · {self.base.dtype} on {self.base.device} · {len(self.fleet)} adapters>"
