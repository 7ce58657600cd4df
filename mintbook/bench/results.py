"""The kept rows of a benchmark: one CSV file that only grows."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from mintbook.bench.machine import ROOT, Machine, in_checkout
from mintbook.bench.row import Row
from mintbook.errors import ConfigError

COLUMNS = ("machine", "versions", "date", "commit", "protocol", "case", "side", "metric", "value", "unit")


def results_folder() -> Path:
    """Return where rows are kept when nobody says otherwise."""
    return ROOT / "kernels" / "benchmarks" / "results" if in_checkout() else Path("mintbook-bench")


def append(path: Path, machine: Machine, protocol: str, rows: Iterable[Row]) -> Path:
    """Append rows, with a heading where the file is new; raise `ConfigError` when it has other columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists() or path.stat().st_size == 0
    if not new:
        with path.open(newline="", encoding="utf-8") as file:
            found = next(csv.reader(file), [])
        if tuple(found) != COLUMNS:
            raise ConfigError(
                f"{path} has the columns {', '.join(found)}; rows of this version have {', '.join(COLUMNS)}. "
                "Move it away, or choose another folder with --out."
            )
    about = (machine.machine, machine.versions, machine.date, machine.commit, protocol)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        writer.writerows((*about, r.case, r.side, r.metric, f"{r.value:.6g}", r.unit) for r in rows)
    return path
