"""A session: one resident base, one store, one engine, and the nouns made from them."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import mintbook_kernels

from mintbook.adapter import Adapter
from mintbook.config import EngineConfig, LoraConfig
from mintbook.display import Block, Card, Facts, Table
from mintbook.display.quantity import bytes_text, number_text
from mintbook.display.shown import Shown
from mintbook.engine.engine import Engine
from mintbook.engine.prometheus import prometheus_text as engine_text
from mintbook.errors import BaseMismatch, ConfigError, RecordExists
from mintbook.fleet import Fleet
from mintbook.model.base import Base
from mintbook.model.sites import choose_sites
from mintbook.peft_import import import_folder
from mintbook.resident import close_runtime, open_runtime
from mintbook.serve.counters import prometheus_text as residency_text
from mintbook.store.store import Store


class Session(Shown):
    """Opens the store and the base, and makes adapters.

    ``base``: nothing for SmolLM2-135M-Instruct, a model folder, or a hub id. ``store``: a folder
    (default: ``MINTBOOK_STORE`` or ``~/.mintbook``). A session opened again in a re-run cell reuses the resident base.
    ``options`` are the fields of `EngineConfig`: how much room there is for adapters and requests, and its rules.

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
        **options: Any,
    ) -> None:
        EngineConfig.from_options(**options)  # before anything is opened
        opened = Store.open(Path(store or os.environ.get("MINTBOOK_STORE") or Path.home() / ".mintbook").expanduser())
        self._runtime = open_runtime(base, opened, device=device, dtype=dtype, options=options)
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
            self._check_possible(config)
            try:
                self.store.create_record(name, base_digest=self.base.digest, base_name=self.base.name, lora=config)
            except RecordExists:
                known = self.store.record(name)  # another process made it between the two lines
        if known is not None:
            self._check(name, known.base_digest, known.base_name, known.lora, options)
        return Adapter(name, self._runtime)

    def import_peft(self, name: str, folder: str | Path, *, same_base: bool = False) -> Adapter:
        """Make a new record from a PEFT adapter folder; everything about the file is checked before anything is kept.

        The folder must show that the adapter was made for this base: by the digest that mintbook's own exports carry,
        or by naming a model folder whose digest is the base's. ``same_base=True`` says so in the folder's stead. Raises
        `BaseMismatch` when it is for another base or does not show it, `FormatError`, `TargetError` or `ShapeError`
        when mintbook cannot serve it exactly, `AdapterError` when it changes nothing, and `RecordExists` when the name
        is taken.
        """
        import_folder(self._runtime, name, Path(folder), same_base=same_base)
        return Adapter(name, self._runtime)

    def runs(self, limit: int = 20) -> Card:
        """Return the last runs of the store: what, of which adapter, and how they ended."""
        rows = [
            [r.id, r.kind, r.record, r.status, (r.result or {}).get("revision")] for r in self.store.runs(limit=limit)
        ]
        columns = ("run", "kind", "adapter", "status", "made")
        table = Table(columns=columns, rows=rows, empty="Nothing has run in this store yet.")
        return Card("Runs", "the latest first", [table])

    def metrics(self) -> str:
        """Return what the resident base's engine and slots have done and do, in Prometheus' text exposition format.

        The same numbers are data in ``session.engine.counters()`` and ``fleet.residency_counters``.
        """
        return engine_text(self.engine.counters()) + residency_text(self._runtime.residency.counters())

    def close(self) -> None:
        """Stop what runs, with its state saved, close the store, and free the base unless another session uses it."""
        close_runtime(self._runtime)

    def card(self) -> Card:
        """Return the base, the store and what computes what, on one card."""
        model = self._runtime.engine.model
        kernel = mintbook_kernels.backend(self.base.device, dtype=model.bank.tensor.dtype)
        on_gpu = [("decode steps", model.decode_steps)] if model.device.type == "cuda" else []
        blocks: list[Block] = [
            Facts(
                [
                    ("adapters", f"{number_text(len(self.fleet))} in {self.store.path}"),
                    ("memory", self._memory()),
                    ("requests", self._requests()),
                    ("LoRA kernels", f"{kernel.name}: {kernel.reason}"),
                    *on_gpu,
                ]
            ),
            *self.base.card().blocks,
        ]
        return Card("Session", f"over {self.base.name}", blocks, badge=str(self.base.device))

    def _requests(self) -> str:
        seen = self.engine.counters()
        return (
            f"{seen.requests_running} running, {seen.requests_waiting} waiting, "
            f"{number_text(sum(seen.finished.values()))} ended; {number_text(seen.tokens_generated)} tokens generated"
        )

    def _memory(self) -> str:
        bank, cache, packed = self.engine.model.bank, self.engine.cache, self.engine.model.packed_bytes
        twice = f" and {bytes_text(packed)} for a copy in this CPU's own layout" if packed else ""
        return (
            f"{bytes_text(self.base.bytes)} base, counted once{twice}; {bytes_text(bank.used_bytes)} loaded adapters; "
            f"{bytes_text(cache.used_bytes)} KV cache in use"
        )

    def _check_possible(self, config: LoraConfig) -> None:
        """Raise before a record is made that no training could ever fill."""
        sites = choose_sites(self.engine.model.sites, config.targets)
        narrow = min(sites, key=lambda site: site.in_features)
        if config.init == "orthonormal" and config.rank > narrow.in_features:
            raise ConfigError(
                f"rank is {config.rank}; {narrow.name} has {narrow.in_features} inputs, so that many orthonormal rows "
                f"do not exist. Use rank ≤ {narrow.in_features}, or init='peft'."
            )
        rows = self.engine.model.bank.rows
        if config.rank > rows:
            raise ConfigError(
                f"rank is {config.rank}; this session's slot bank has {rows} rank-rows. Open it with more slot_rows."
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
