"""Where a revision or a number comes from: the code, the packages, the processor and the notebook cell."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "transformers", "safetensors", "tokenizers")


def code_version() -> str:
    """Return the installed version of mintbook."""
    return version("mintbook")


def package_versions() -> dict[str, str]:
    """Return the versions that can change a training's numbers, with Python's."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def processor_name() -> str:
    """Return the processor's name as the system gives it; empty where it gives none."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def current_cell() -> str | None:
    """Return the source of the notebook cell that runs now, or ``None`` outside a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    cells = getattr(shell, "user_ns", {}).get("In") if shell is not None else None
    return str(cells[-1]) if cells else None
