"""Bars are as long as their numbers say."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from mintbook.display import Bars
from mintbook.display.bars import bar


def test_a_bar_is_exact_to_an_eighth() -> None:
    assert [bar(share, 8) for share in (0, 1 / 64, 0.5, 1)] == ["", "▏", "████", "████████"]
    assert bar(1e-9, 8) == "▏"


def test_the_longest_is_the_largest_size() -> None:
    html = Bars([("a", -2.0), ("b", 1.0), ("c", 0.0)]).html()
    assert re.findall(r"--mb-share:([\d.]+)", html) == ["1.0000", "0.5000", "0.0000"]
    assert html.count("mb-below") == 1
    text = Bars([("a", -2.0), ("b", 1.0)]).text()
    (first, second) = (line.count("█") for line in text.splitlines())
    assert first == 2 * second > 0
    assert "-2" in text


def test_without_styles_the_bars_are_characters(on_github: Callable[[str], str]) -> None:
    left = on_github(Bars([("a", 1.0), ("b", 0.5)]).html())
    assert [len(run) for run in re.findall("█+", left)] == [24, 12]
    assert "style" not in left


def test_values_that_are_no_numbers() -> None:
    text = Bars([("a", None), ("b", math.nan), ("c", 0.0)], caption="Shift", unit="nats").text()
    assert text.splitlines()[0] == "Shift (nats)"
    assert "█" not in text and "—" in text and "nan" in text
    assert "█" not in Bars([("a", None), ("b", math.inf)]).html()


def test_many_and_none() -> None:
    many = Bars([(f"layer {index}", float(index)) for index in range(50)])
    assert many.text().endswith("… 10 more") and "… 10 more" in many.html()
    assert Bars([], caption="Shift").text() == "Shift\nNothing to compare yet."
    assert "Shift: Nothing to compare yet." in Bars([], caption="Shift").html()


def test_it_keeps_the_width() -> None:
    bars = Bars([("model.layers.29.self_attn.q_proj", 0.5), ("x" * 90, 0.25)])
    for width in (60, 80, 120):
        assert max(map(len, bars.text(width).splitlines())) <= width
