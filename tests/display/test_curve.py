"""A curve tells in words what its chart draws."""

from __future__ import annotations

import math
from collections.abc import Callable

from mintbook.display import Curve


def test_words_beside_the_line() -> None:
    text = Curve({"loss": [(1, 3.55), (2, 0.01), (3, 0.02)], "validation": [(3, 0.5)]}, caption="Training").text()
    assert text.splitlines()[0] == "Training"
    assert "3.55 → 0.02" in text
    assert "lowest 0.01 at step 2" in text
    assert "0.5 at step 3" in text


def test_without_svg_the_sparkline_and_the_numbers_remain(on_github: Callable[[str], str]) -> None:
    html = Curve({"loss": [(1, 3.55), (2, 1.2), (3, 0.02)]}).html()
    assert '<svg class="mb-chart" role="img" aria-label="loss: 3.55 → 0.02, lowest 0.02 at step 3"' in html
    left = on_github(html)
    assert "<svg" not in left and "<path" not in left
    assert "█▃▁" in left and "3.55 → 0.02" in left and "lowest 0.02 at step 3" in left


def test_without_svg_tags_its_words_do_not_run_together(untrusted: Callable[[str], str]) -> None:
    left = untrusted(Curve({"loss": [(0, 3.0), (20, 1.0)]}, y_label="nats").html())
    before_table = left[: left.index("<table")].replace("<div>", "")
    assert before_table.split() == ["nats", "1.0", "1.5", "2.0", "2.5", "3.0", "step", "0", "5", "10", "15", "20"]


def test_divergence_is_said() -> None:
    curve = Curve({"loss": [(1, 2.0), (2, math.nan)]})
    assert "2 → nan" in curve.text()
    curve = Curve({"loss": [(1, math.nan), (2, math.nan)]})
    assert "no finite value" in curve.text()
    assert "no finite value" in curve.html() and "mb-chart" not in curve.html()


def test_each_line_has_its_key_also_when_another_series_is_empty() -> None:
    html = Curve({"empty": [], "loss": [(1, 2.0), (2, 1.0)]}).html()
    key, chart = html[html.index('class="mb-key"') :], html[: html.index("<table")]
    assert "mb-line2" in key and "mb-line2" in chart and "mb-line1" not in html


def test_no_points_are_said_in_words() -> None:
    for curve in (Curve({}), Curve({"loss": []})):
        assert curve.text() == "No points yet."
        assert "No points yet." in curve.html()
