"""The chart is well-formed, described, and true to its points."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from mintbook.display.line_chart import line_chart, tick_texts, ticks

SVG = "{http://www.w3.org/2000/svg}"


def chart(series: dict[str, list[tuple[float, float]]]) -> ElementTree.Element:
    return ElementTree.fromstring(line_chart(series, "step", "nats", "loss: 3 → 1"))


def drawn(root: ElementTree.Element) -> list[list[tuple[str, float, float]]]:
    lines = [path.get("d", "") for path in root.iter(f"{SVG}path") if "mb-line" in path.get("class", "")]
    return [[(m, float(x), float(y)) for m, x, y in re.findall(r"([ML])([\d.-]+) ([\d.-]+)", line)] for line in lines]


def test_it_is_an_image_with_words() -> None:
    root = chart({"loss": [(1, 3.0), (2, 1.0)]})
    assert root.get("role") == "img"
    assert root.get("aria-label") == "loss: 3 → 1"
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert words[0] == "nats" and "step" in words and "3.0" in words


def test_colours_are_the_pages_own() -> None:
    svg = line_chart({"a": [(0, 1), (1, 2)], "b": [(0, 2), (1, 3)]}, "", "", "")
    assert set(re.findall(r'(?:stroke|fill)="([^"]+)"', svg)) == {"currentColor", "none"}
    assert "stroke-dasharray" in svg


@pytest.mark.parametrize(
    "values",
    [[3.5, 1.0, 0.02], [5.0, 5.0], [0.0, 0.0], [1.0, 1.0 + 2e-16], [1e-15, 3e-15], [-4.0, -2.0], [1e30, 2e30], [7.0]],
)
def test_every_point_lies_inside_and_higher_values_are_higher(values: list[float]) -> None:
    (line,) = drawn(chart({"loss": [(float(step), value) for step, value in enumerate(values)]}))
    assert len(line) == len(values)
    assert all(0 <= x <= 640 and 0 <= y <= 200 for _, x, y in line)
    order = sorted(range(len(values)), key=lambda index: values[index])
    heights = [line[index][2] for index in order]
    assert heights == sorted(heights, reverse=True)


def test_a_value_that_is_not_finite_interrupts_the_line() -> None:
    root = chart({"loss": [(1, 3.0), (2, math.nan), (3, 2.0), (4, 1.0)]})
    assert [move for move, _, _ in drawn(root)[0]] == ["M", "M", "L"]
    assert len(list(root.iter(f"{SVG}circle"))) == 1, "the point left alone is a dot"


def test_a_long_series_keeps_its_spike() -> None:
    points = [(float(step), 1.0) for step in range(50_000)]
    points[31_234] = (31_234.0, 9.0)
    (line,) = drawn(chart({"loss": points}))
    assert len(line) <= 240
    assert min(y for _, _, y in line) < 0.5 * max(y for _, _, y in line)


def test_ticks_are_round_and_can_be_told_apart() -> None:
    assert ticks(0.02, 3.55, 4) == [0, 1, 2, 3, 4]
    assert ticks(1, 3, 6, whole=True) == [1, 2, 3]
    for low, high in ((2.5121, 2.5187), (0.0, 1e-7), (-3.0, 12_345.0), (1000.1, 1000.4)):
        texts = tick_texts(ticks(low, high, 4))
        assert len(set(texts)) == len(texts)
