"""Numbers that change with the steps, drawn and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mintbook.display.escape import escaped, one_line
from mintbook.display.line_chart import Points, line_chart, stroke
from mintbook.display.markup import cell, empty, heading, row
from mintbook.display.quantity import number_text
from mintbook.display.sparkline import sparkline
from mintbook.display.terminal import lined_up, wrap


@dataclass(frozen=True, slots=True)
class Curve:
    """A line per named series of ``(x, y)`` points, with its sparkline and its first, last and lowest value in words.

    >>> print(Curve({"loss": [(1, 3.55), (30, 0.4), (60, 0.02)]}).text())
    loss  █▁▁  3.55 → 0.02  lowest 0.02 at step 60
    """

    series: Mapping[str, Points]
    x_label: str = "step"
    y_label: str = ""
    caption: str = ""
    empty: str = "No points yet."

    def text(self, width: int = 80) -> str:
        """Return a line per series: name, sparkline, first → last, lowest."""
        lines = wrap(one_line(self.caption), width) if self.caption else []
        rows = self._rows()
        if not rows:
            return "\n".join([*lines, self.empty])
        legend = lined_up([tuple(map(one_line, line)) for line in rows], [False] * 4, width)
        return "\n".join(lines + [line for row_lines in legend for line in row_lines])

    def html(self) -> str:
        """Return a chart, and below it a table with the sparklines that remain where SVG is removed."""
        rows = self._rows()
        if not rows:
            return empty(self.caption, self.empty)
        spoken = ". ".join([self.caption, *(f"{name}: {change}, {lowest}" for name, _, change, lowest in rows)])
        drawn = any(math.isfinite(x) and math.isfinite(y) for points in self.series.values() for x, y in points)
        chart = line_chart(self.series, self.x_label, self.y_label, spoken.lstrip(". ")) if drawn else ""
        legend = "".join(
            row(
                [
                    heading(_key(list(self.series).index(name)) + escaped(name), "row"),
                    cell(f'<span class="mb-spark">{spark}</span>'),
                    cell(escaped(change)),
                    cell(escaped(lowest)),
                ]
            )
            for name, spark, change, lowest in rows
        )
        title = f'<p class="mb-caption"><strong>{escaped(self.caption)}</strong></p>' if self.caption else ""
        table = f'<table class="mb-legend"><tbody>{legend}</tbody></table>'
        return f'<div class="mb-curve">{title}{chart}{table}</div>'

    def _rows(self) -> list[tuple[str, str, str, str]]:
        return [(name, *_words(points, self.x_label)) for name, points in self.series.items() if points]


def _key(index: int) -> str:
    return f'<svg class="mb-key" aria-hidden="true" width="22" height="8"><path {stroke(index)} d="M0 4H22"/></svg>'


def _words(points: Points, x_label: str) -> tuple[str, str, str]:
    """Return the sparkline of ``points``, the change from first to last, and where the lowest value is."""
    spark = sparkline([y for _, y in points])
    first, last = number_text(points[0][1]), number_text(points[-1][1])
    change = f"{first} → {last}" if len(points) > 1 else f"{first} at {x_label} {number_text(points[0][0])}"
    finite = [(y, x) for x, y in points if math.isfinite(y)]
    if not finite:
        return spark, change, "no finite value"
    low, where = min(finite)
    return spark, change, f"lowest {number_text(low)} at {x_label} {number_text(where)}" if len(points) > 1 else ""
