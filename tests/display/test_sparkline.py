"""Sparklines, and what they do with what is no ordinary series."""

from __future__ import annotations

import math

from mintbook.display.sparkline import sparkline


def test_it_runs_from_the_lowest_to_the_highest_level() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([2.0, 1.0]) == "█▁"


def test_series_without_a_range() -> None:
    assert sparkline([]) == ""
    assert sparkline([0.5]) == "▄"
    assert sparkline([3.0, 3.0, 3.0]) == "▄▄▄"


def test_what_is_not_finite_is_a_gap() -> None:
    assert sparkline([1.0, math.nan, 2.0]) == "▁·█"
    assert sparkline([1.0, math.inf, 2.0]) == "▁·█"
    assert sparkline([math.nan, math.nan]) == "··"


def test_a_long_series_is_averaged() -> None:
    line = sparkline([float(index) for index in range(1000)], width=10)
    assert len(line) == 10
    assert list(line) == sorted(line)
    assert sparkline([0.0] * 50 + [math.nan] + [1.0] * 49, width=2) == "▁█"
