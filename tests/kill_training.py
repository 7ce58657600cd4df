"""A training in a process of its own, to be killed: ``python kill_training.py BASE STORE NAME``.

Resumes when it can.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tiny import FACTS

from mintbook.session import Session

OPTIONS = {"steps": 40, "batch_size": 4, "anchor": 0.0, "learning_rate": 5e-3, "checkpoint_every": 3}


def main(base: str, store: str, name: str) -> None:
    session = Session(Path(base), store=store, dtype="float32", slot_rows=64, kv_tokens=2048)
    adapter = session.adapter(name, rank=4)
    rows = session.store.runs(record=name, limit=1)
    print("ready", flush=True)
    run = adapter.resume() if rows and rows[0].status == "interrupted" else adapter.train(FACTS, **OPTIONS)
    print("done", adapter.revision().weights_digest, [entry["loss"] for entry in run.metrics], flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
