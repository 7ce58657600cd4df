"""A benchmark's result: its rows and ratios, as a frame, a figure and a card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import polars as pl

from mintbook.bench.machine import Machine
from mintbook.bench.row import EVERY, Row
from mintbook.display import Block, Card, Facts, Note, Table
from mintbook.display.quantity import Value, number_text
from mintbook.display.shown import Shown

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ROWS_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Target:
    """What a ratio should reach: at most ``bound`` (or at least, with ``at_least``), and better still ``stretch``."""

    bound: float
    stretch: float | None = None
    at_least: bool = False

    def verdict(self, value: float) -> str:
        """Return ``stretch``, ``reached`` or ``missed``.

        >>> Target(1.35, 1.25).verdict(1.3), Target(3, 4, at_least=True).verdict(2.9)
        ('reached', 'missed')
        """
        if self.stretch is not None and self._fits(value, self.stretch):
            return "stretch"
        return "reached" if self._fits(value, self.bound) else "missed"

    def _fits(self, value: float, bound: float) -> bool:
        return value >= bound if self.at_least else value <= bound

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        return f"{sign} {self.bound:g}" + (f" ({self.stretch:g})" if self.stretch is not None else "")


@dataclass(frozen=True, slots=True)
class Findings:
    """What a benchmark measured; ``ratios`` are those that its JSON line has, in their order."""

    rows: Sequence[Row]
    ratios: Mapping[str, float]
    skipped: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, repr=False)
class Benchmark(Shown):
    """One benchmark, measured: what was measured on which machine, and how the ratios stand to their targets."""

    name: str
    protocol: str
    machine: Machine
    rows: tuple[Row, ...]
    ratios: dict[str, float]
    targets: Mapping[str, Target]
    skipped: Mapping[str, str]
    kept_in: str = ""

    @property
    def frame(self) -> pl.DataFrame:
        """A row per number: case, side, metric, value, unit."""
        return pl.DataFrame(
            [asdict(row) for row in self.rows],
            schema={"case": pl.String, "side": pl.String, "metric": pl.String, "value": pl.Float64, "unit": pl.String},
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return {
            "name": self.name,
            "protocol": self.protocol,
            **self.machine.to_dict(),
            "ratios": dict(self.ratios),
            "skipped": dict(self.skipped),
            "rows": [asdict(row) for row in self.rows],
        }

    def figure(self) -> Figure:
        """Return a plotly figure: the ratios with their targets, and below them the speed of every case and side."""
        from plotly.graph_objects import Bar, Scatter
        from plotly.subplots import make_subplots

        metric = next((m for m in ("speed", "wall") if m in set(self.frame["metric"])), None)
        shown = self.frame.filter(pl.col("metric") == metric) if metric else self.frame.head(0)
        unit = shown["unit"][0] if len(shown) else ""
        titles = ["ratios, with their targets", f"{metric}, {unit}"][: 2 if len(shown) else 1]
        figure = make_subplots(rows=len(titles), cols=1, subplot_titles=titles, vertical_spacing=0.25)
        names = list(self.ratios)
        figure.add_trace(Bar(x=names, y=list(self.ratios.values()), name="ratio"), row=1, col=1)
        wanted = [name for name in names if name in self.targets]
        line = {"symbol": "line-ew", "size": 24, "line": {"width": 2}}
        bounds = [self.targets[name].bound for name in wanted]
        figure.add_trace(Scatter(x=wanted, y=bounds, mode="markers", marker=line, name="target"), row=1, col=1)
        for (side,), part in shown.group_by(["side"], maintain_order=True):
            figure.add_trace(Bar(x=part["case"].to_list(), y=part["value"].to_list(), name=str(side)), row=2, col=1)
        return figure.update_layout(title=f"mintbook bench {self.name}", height=420 * len(titles))

    def card(self) -> Card:
        """Return machine, protocol, ratios against their targets, and the numbers of every case."""
        facts = [("machine", self.machine.machine), ("versions", self.machine.versions), ("date", self.machine.date)]
        facts += [("commit", self.machine.commit)] if self.machine.commit else []
        facts += [(f"without {name}", reason) for name, reason in self.skipped.items()]
        facts += [(row.metric, f"{number_text(row.value)} {row.unit}") for row in self.rows if row.case == EVERY]
        facts += [("rows kept in", self.kept_in)] if self.kept_in else []
        blocks: list[Block] = [Note(self.protocol), Facts(facts), self._ratio_table(), self._case_table()]
        return Card(f"bench {self.name}", "mintbook", blocks)

    def _ratio_table(self) -> Table:
        rows: list[list[Value]] = []
        for name, value in self.ratios.items():
            target = self.targets.get(name)
            rows.append([name, f"{value:.2f}", str(target) if target else "", target.verdict(value) if target else ""])
        return Table(("ratio", "value", "target (stretch)", "verdict"), rows, align="lrll", limit=ROWS_SHOWN)

    def _case_table(self) -> Table:
        rows_of_cases = [row for row in self.rows if row.case != EVERY]
        metrics = list(dict.fromkeys(f"{row.metric}, {row.unit}" for row in rows_of_cases))
        cells: dict[tuple[str, str], dict[str, float]] = {}
        for row in rows_of_cases:
            cells.setdefault((row.case, row.side), {})[f"{row.metric}, {row.unit}"] = row.value
        rows: list[list[Value]] = [
            [case, side, *(found.get(metric) for metric in metrics)] for (case, side), found in cells.items()
        ]
        return Table(("case", "side", *metrics), rows, limit=ROWS_SHOWN)

    def __repr__(self) -> str:
        missed = sum(t.verdict(self.ratios[n]) == "missed" for n, t in self.targets.items() if n in self.ratios)
        return f"<Benchmark {self.name} · {len(self.ratios)} ratios · {missed} targets missed>"
