"""A recorded study: rows in a JSON file, with the machine and the protocol that gave them."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mintbook.store.origin import code_version, package_versions, processor_name


def machine() -> dict[str, Any]:
    """Return what a number depends on: processor, cores, packages."""
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "mintbook": code_version(),
        **package_versions(),
    }


def write_record(path: Path, *, protocol: str, rows: Sequence[dict[str, Any]]) -> Path:
    """Write a study so far; called after every row, so that a cut-off study keeps what it measured."""
    record = {
        "protocol": protocol,
        "machine": machine(),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": list(rows),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    beside.rename(path)
    return path
