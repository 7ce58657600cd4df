"""A base in memory, with its engine and slots, shared by every session that asks for the same one."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import Any

from mintbook.config import EngineConfig
from mintbook.display.live import Live
from mintbook.engine.engine import Engine
from mintbook.errors import ConfigError
from mintbook.model.base import Base, device_of, load_base
from mintbook.model.digest import folder_stamp
from mintbook.model.packed_model import PackedModel
from mintbook.passing_thread import in_passing_thread
from mintbook.runtime import Runtime
from mintbook.serve.residency import Residency
from mintbook.store.store import Store


class Resident:
    """One base, kept while a session or an adapter of one is open on it."""

    def __init__(self, base: Base, config: EngineConfig) -> None:
        self.base = base
        self.config = config
        self.stamp = folder_stamp(base.folder)
        model = in_passing_thread(
            lambda: PackedModel(
                base.model,
                slot_rows=config.slot_rows,
                batch_invariant=config.batch_invariant,
                packed_weights=config.packed_weights,
            )
        )
        # Made here: an interrupt above leaves a thread that ends, and no engine that nobody could close.
        self.engine = Engine(model, base.renderer.tokenizer, config)
        self.residency = Residency(self.engine, base.digest)
        self.runtimes: weakref.WeakSet[Runtime] = weakref.WeakSet()

    def check_asked(self, options: dict[str, Any]) -> None:
        """Raise `ConfigError` when a session asks for other room or rules than there are, or the folder has changed."""
        for name, asked in options.items():
            if asked != getattr(self.config, name):
                raise ConfigError(
                    f"{name} is {asked}, and {self.base.name} is resident with {getattr(self.config, name)}. Close the "
                    "sessions and adapters on it first, or leave the option out."
                )
        if folder_stamp(self.base.folder) != self.stamp:
            raise ConfigError(
                f"The files in {self.base.folder} have changed since {self.base.name} was loaded from them. Close the "
                "sessions and adapters on it first; the next session reads them anew."
            )


_residents: dict[tuple[str, str, str], Resident] = {}
_lock = threading.Lock()


def open_runtime(base: str | Path | None, store: Store, *, device: str, dtype: str, options: dict[str, Any]) -> Runtime:
    """Return a runtime on the resident base, loading it first when nobody has.

    ``options`` are fields of `EngineConfig`.
    """
    config = EngineConfig.from_options(**options)
    key = _key(base, device, dtype)
    with _lock, Live() as live:
        resident = _residents.get(key)
        if resident is None:
            say = live.line
            found = in_passing_thread(lambda: load_base(base, dtype=dtype, device=device, progress=say))
            resident = _residents[key] = Resident(found, config)
        resident.check_asked(options)
        runtime = Runtime(resident.base, store, resident.engine, resident.residency)
        resident.runtimes.add(runtime)
    return runtime


def close_runtime(runtime: Runtime) -> None:
    """Stop the runtime's runs, with their state saved, close its store, and free the base if it was the last on it."""
    runtime.end_runs()
    runtime.store.close()
    with _lock:
        for key, resident in list(_residents.items()):
            if runtime in resident.runtimes:
                resident.runtimes.discard(runtime)
                if not resident.runtimes:
                    resident.engine.close()
                    del _residents[key]


def _key(base: str | Path | None, device: str, dtype: str) -> tuple[str, str, str]:
    folder = Path(base).expanduser() if base is not None else None
    return str(folder.resolve() if folder is not None and folder.is_dir() else base), str(device_of(device)), dtype
