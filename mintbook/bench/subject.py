"""What a benchmark is, and how one is run: measure, check, keep, show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from mintbook.bench.benchmark import Benchmark, Findings, Target
from mintbook.bench.machine import Machine
from mintbook.bench.results import append, results_folder
from mintbook.bench.setting import Setting
from mintbook.display.live import Live


class Subject(Protocol):
    """One benchmark: a name, targets for its ratios, and how it measures."""

    @property
    def name(self) -> str:
        """The word after ``mintbook bench``."""

    @property
    def targets(self) -> Mapping[str, Target]:
        """What its ratios should reach."""

    def protocol(self, setting: Setting) -> str:
        """Return how it measures, in words that a reader of the kept rows understands."""

    def measure(self, setting: Setting, say: Callable[[str], None]) -> Findings:
        """Measure, and check every output before returning; raise when one is wrong."""


def run(subject: Subject, setting: Setting) -> Benchmark:
    """Run a benchmark with progress; the rows of a full run are kept, those of a quick one where ``out`` is given.

    Nothing is written when `Subject.measure` raises.
    """
    with Live() as live:
        findings = subject.measure(setting, live.line)
    result = Benchmark(
        name=subject.name,
        protocol=subject.protocol(setting),
        machine=Machine.here(setting.threads, **findings.versions),
        rows=tuple(findings.rows),
        ratios={name: round(value, 3) for name, value in findings.ratios.items()},
        targets=subject.targets,
        skipped=findings.skipped,
    )
    if setting.quick and setting.out is None:
        return result
    folder = Path(setting.out).expanduser() if setting.out is not None else results_folder()
    kept = append(folder / f"{subject.name}.csv", result.machine, result.protocol, result.rows)
    return replace(result, kept_in=str(kept))
