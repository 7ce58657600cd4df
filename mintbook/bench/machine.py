"""The machine that gave a number: processor, features, threads, packages and commit."""

from __future__ import annotations

import os
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from mintbook_kernels import backend

from mintbook.store.origin import code_version, package_versions, processor_name

ROOT = Path(__file__).parents[2]
"""The checkout, where there is one."""
_TELLING = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")
_PACKAGES = ("peft", "triton")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a number depends on, as text: one column of the kept rows each."""

    machine: str
    versions: str
    date: str
    commit: str

    @classmethod
    def here(cls, threads: int, **others: str) -> Machine:
        """Describe this machine now; ``others`` are versions of packages that live in other environments."""
        found = {"mintbook": code_version(), **package_versions(), **_versions(), **others}
        wait = os.environ.get("OMP_WAIT_POLICY", "unset")
        parts = [
            processor_name() or "unknown processor",
            f"{os.cpu_count()} processors",
            f"{threads} threads",
            " ".join(_features()) or "no telling features",
            f"torch uses {torch.backends.cpu.get_cpu_capability()}",
            f"OMP_WAIT_POLICY {wait.lower()}",
            f"LoRA kernels: {backend(torch.device('cpu')).name}",
        ]
        return cls(
            machine="; ".join(parts),
            versions="; ".join(f"{name} {number}" for name, number in found.items()),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            commit=_commit(),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the description as plain data."""
        return asdict(self)


def in_checkout() -> bool:
    """Whether the code runs from its repository rather than from an installed wheel."""
    return (ROOT / ".git").exists() and (ROOT / "kernels" / "mintbook_kernels").is_dir()


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _features() -> list[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    flags = next(
        (line.split(":", 1)[1].split() for line in lines if line.lower().startswith(("flags", "features"))), []
    )
    return [name for name in _TELLING if name in flags]


def _commit() -> str:
    if not in_checkout():
        return ""
    git = ["git", "-C", str(ROOT)]
    code = ["--", ".", ":(exclude)kernels/benchmarks/results"]  # the rows that this very run may add to
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        status = [*git, "status", "--porcelain", "-uno", *code]
        changed = subprocess.run(status, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+changes" if changed.stdout.strip() else "")
