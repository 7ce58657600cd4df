"""Benchmarks that a user runs on the own machine: ``mintbook bench decode``, or ``bench.decode(quick=True)``.

Each takes the fields of `Setting` and returns a `Benchmark`; a further one is a file with a `Subject`, and a line here.
"""

from __future__ import annotations

from typing import Any

from mintbook.bench.benchmark import Benchmark, Target
from mintbook.bench.decoding import Decode
from mintbook.bench.handover import Handoff
from mintbook.bench.loading import Load
from mintbook.bench.policies import Readiness
from mintbook.bench.prefilling import Prefill
from mintbook.bench.setting import Setting
from mintbook.bench.soaking import Soak
from mintbook.bench.subject import Subject, run

SUBJECTS: dict[str, Subject] = {s.name: s for s in (Decode(), Prefill(), Load(), Handoff(), Readiness(), Soak())}

__all__ = [
    "SUBJECTS",
    "Benchmark",
    "Setting",
    "Subject",
    "Target",
    "decode",
    "handoff",
    "load",
    "prefill",
    "readiness",
    "run",
    "soak",
]


def decode(**options: Any) -> Benchmark:
    """Measure decode steps with many adapters over the base's, and beside transformers, PEFT and vLLM."""
    return run(SUBJECTS["decode"], Setting(**options))


def prefill(**options: Any) -> Benchmark:
    """Measure the reading of prompts with many adapters over the base's, and beside transformers, PEFT and vLLM."""
    return run(SUBJECTS["prefill"], Setting(**options))


def load(**options: Any) -> Benchmark:
    """Measure how fast adapters come from the store into slots, cold and warm, and beside PEFT's ``load_adapter``."""
    return run(SUBJECTS["load"], Setting(**options))


def handoff(**options: Any) -> Benchmark:
    """Measure the way from trainer to server by the adapter alone, and by merged weights."""
    return run(SUBJECTS["handoff"], Setting(**options))


def readiness(**options: Any) -> Benchmark:
    """Measure what a wave of new adapters does to tenants that are served, under three policies of loading."""
    return run(SUBJECTS["readiness"], Setting(**options))


def soak(**options: Any) -> Benchmark:
    """Keep a tiny base at its limit with failures, cancellations and evictions, and hold every answer to its own."""
    return run(SUBJECTS["soak"], Setting(**options))
