"""How a benchmark is asked for: quick or full, over which base, with how many threads, against which vLLM."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from mintbook.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The options of every benchmark; a benchmark that has no use for one leaves it alone."""

    quick: bool = False
    """The same ratios from fewer cases and rounds, in under a minute where vLLM is not installed; nothing is kept."""
    base: str | Path | None = None
    """``None`` for SmolLM2-135M-Instruct, a model folder, or a hub id."""
    dtype: str = "bfloat16"
    threads: int = field(default_factory=lambda: min(2, processors()))
    """Threads of every side, 2 where there are as many; at most the processors that this process may use."""
    vllm: str | Path | None = None
    """``None``: the environment that ``install`` made, if it is there; the folder of another; ``"install"``, which
    makes it first; or ``"off"``."""
    out: str | Path | None = None
    """Folder of the rows; ``None``: that of the checkout, ``mintbook-bench`` elsewhere, and for a quick run nowhere."""

    seconds: float | None = None
    """How long the soak goes on; ``None``: 600 s, and 30 s for a quick one."""

    def __post_init__(self) -> None:
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise ConfigError(f"seconds is {self.seconds!r}; a soak goes on for more than none.")
        if not 1 <= self.threads <= processors():
            raise ConfigError(f"threads is {self.threads!r}; this process may use 1 to {processors()} processors.")


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
