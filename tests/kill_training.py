"""A training in a process of its own, to be killed; it resumes when it can.

``python kill_training.py BASE STORE NAME [POINT]``: at the named point the process kills itself, as a power cut would.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny import FACTS

import mintbook.store.commit
import mintbook.train.checkpoint
import mintbook.train.examples
from mintbook.session import Session
from mintbook.store.store import Store
from mintbook.train.checkpoint import TrainingState

OPTIONS = {"steps": 24, "batch_size": 4, "anchor": 0.0, "learning_rate": 5e-3, "checkpoint_every": 3}
POINTS: dict[str, tuple[object, str, int, bool]] = {
    # name: (owner, function, the call after which it dies, whether half of the file just written is lost)
    "while the examples are written": (mintbook.train.examples, "sync_file", 1, True),
    "while a checkpoint is written": (mintbook.train.checkpoint, "save_file", 3, True),
    "before a checkpoint is renamed": (mintbook.train.checkpoint, "save_file", 3, False),
    "after a checkpoint is renamed": (TrainingState, "save", 3, False),
    "before the revision's transaction ends": (mintbook.store.commit, "_insert", 1, False),
    "after the commit, before the run's last word": (Store, "commit", 1, False),
}


def die_after(point: str) -> None:
    owner, name, at, torn = POINTS[point]
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def dying(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        result = real(*args, **options)
        if calls == at:
            if torn:
                written = next(value for value in args if isinstance(value, Path))
                os.truncate(written, written.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, dying)


def main(base: str, store: str, name: str, point: str = "") -> None:
    if point:
        die_after(point)
    session = Session(Path(base), store=store, dtype="float32", slot_rows=64, kv_tokens=2048)
    adapter = session.adapter(name, rank=4)
    print("ready", flush=True)
    folder = Path(store) / "runs"
    unfinished = [row for row in session.store.runs(record=name, limit=1) if row.status == "interrupted"]
    begun = unfinished and (folder / unfinished[0].id / "examples.jsonl").is_file()
    run = adapter.resume() if begun else adapter.train(FACTS, **OPTIONS)
    losses = {entry["step"]: entry["loss"] for entry in run.metrics}
    print("done", adapter.revision().weights_digest, len(adapter.revisions), losses, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
