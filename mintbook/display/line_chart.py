"""Lines over two axes, as SVG that takes its colours from the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mintbook.display.escape import escaped_attribute, one_line
from mintbook.display.quantity import number_text
from mintbook.display.terminal import columns_of

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 640, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 20, 24, 28
_MOST_POINTS = 240
_MOST_DECIMALS = 4
# A second sign beside the colour, for readers and printers that do not tell colours apart.
_DASHES = ("", "7 3", "2 3", "9 3 2 3")


def ticks(low: float, high: float, about: int, *, whole: bool = False) -> list[float]:
    """Return round numbers from the one at or below ``low`` to the one at or above ``high``, some ``about`` of them.

    >>> ticks(0.02, 3.55, 4), ticks(1, 60, 6, whole=True)
    ([0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0])
    """
    rough = (high - low) / max(1, about) or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    if whole:
        step = max(1.0, float(round(step)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def tick_texts(places: Sequence[float]) -> list[str]:
    """Return ticks as text with as many decimals as tell neighbours apart.

    >>> tick_texts([2.512, 2.514]), tick_texts([0.0, 10.0]), tick_texts([0.0, 1e-9])
    (['2.512', '2.514'], ['0', '10'], ['0', '1e-09'])
    """
    step = places[1] - places[0] if len(places) > 1 else 1.0
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if decimals > _MOST_DECIMALS or max(map(abs, places)) >= 1e6:
        return list(map(number_text, places))
    return [f"{place:,.{decimals}f}" for place in places]


def stroke(index: int) -> str:
    """Return the attributes that draw the line of series ``index``, with and without the card's style."""
    dash = _DASHES[index % len(_DASHES)]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'class="mb-line{index % len(_DASHES) + 1}" fill="none" stroke="currentColor" stroke-width="1.6"{dashes}'


def line_chart(series: Mapping[str, Points], x_label: str, y_label: str, description: str) -> str:
    """Return an ``<svg role="img">`` with a line per series; points that are not finite interrupt their line.

    ``description`` is what a screen reader says. Raises ValueError where no series has a finite point.
    """
    finite = [point for points in series.values() for point in points if _finite(point)]
    x_low, x_high = _apart(min(x for x, _ in finite), max(x for x, _ in finite))
    y_ticks = ticks(*_apart(min(y for _, y in finite), max(y for _, y in finite)), 4)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def across(x: float) -> float:
        return _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def down(y: float) -> float:
        return _TOP + (y_high - y) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_label(0, 11, one_line(y_label), "start")]
    for y, words in zip(y_ticks, tick_texts(y_ticks), strict=True):
        rule = f"M{_LEFT} {down(y):.1f}H{_WIDTH - _RIGHT}"
        parts.append(f'<path stroke="currentColor" stroke-opacity=".18" d="{rule}"/>')
        parts.append(_label(_LEFT - 7, down(y) + 4, words, "end"))
    x_ticks = ticks(x_low, x_high, 6, whole=all(float(x).is_integer() for x, _ in finite))
    parts.append(_label(0, _HEIGHT - 6, one_line(x_label), "start"))
    # The axis' name stands at the left end; a tick under it would be written over.
    free_from = 7 * columns_of(one_line(x_label)) + 10
    for x, words in zip(x_ticks, tick_texts(x_ticks), strict=True):
        if x_low <= x <= x_high and across(x) > free_from:
            parts.append(_label(across(x), _HEIGHT - 6, words, "middle"))
    for index, points in enumerate(series.values()):
        parts.append(_line(index, [(across(x), down(y)) if _finite((x, y)) else None for x, y in _thinned(points)]))
    return (
        f'<svg class="mb-chart" role="img" aria-label="{escaped_attribute(description)}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}" xmlns="http://www.w3.org/2000/svg">'
        # Where only the tags of an SVG are removed, its words must not run together.
        + "\n".join(parts)
        + "</svg>"
    )


def _finite(point: tuple[float, float]) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


def _apart(low: float, high: float) -> tuple[float, float]:
    """Return an interval of some width also where all values are equal, or as good as."""
    margin = max(abs(low), abs(high)) * 0.1 or 1.0
    return (low, high) if high - low > margin * 1e-6 else (low - margin, high + margin)


def _label(x: float, y: float, words: str, anchor: str) -> str:
    return (
        f'<text class="mb-axis" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="11" '
        f'fill="currentColor">{escaped_attribute(words)}</text>'
    )


def _line(index: int, places: Sequence[tuple[float, float] | None]) -> str:
    """Return one path with a gap at each None, and a dot on every point that has no neighbour."""
    path, dots, pen_down = [], [], False
    for here, place in enumerate(places):
        if place is None:
            pen_down = False
            continue
        path.append(f"{'L' if pen_down else 'M'}{place[0]:.1f} {place[1]:.1f}")
        pen_down = True
        neighbours = [*places[max(0, here - 1) : here], *places[here + 1 : here + 2]]
        if not any(neighbours):
            where = f'cx="{place[0]:.1f}" cy="{place[1]:.1f}"'
            dots.append(f'<circle class="mb-dot{index % len(_DASHES) + 1}" fill="currentColor" {where} r="3"/>')
    return f'<path {stroke(index)} stroke-linejoin="round" d="{"".join(path)}"/>' + "".join(dots) if path else ""


def _thinned(points: Points) -> Points:
    """Return at most ``_MOST_POINTS`` points: of each stretch the lowest and the highest, so that no spike is lost."""
    if len(points) <= _MOST_POINTS:
        return points
    kept: list[tuple[float, float]] = []
    stretches = _MOST_POINTS // 2
    for index in range(stretches):
        stretch = points[index * len(points) // stretches : (index + 1) * len(points) // stretches]
        finite = [point for point in stretch if _finite(point)]
        if not finite:
            kept.append(stretch[0])
            continue
        kept += sorted({min(finite, key=lambda point: point[1]), max(finite, key=lambda point: point[1])})
    return kept
