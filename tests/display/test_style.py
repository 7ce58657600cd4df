"""The one style sheet: scoped, themed, legible."""

from __future__ import annotations

import re

import pytest

from mintbook.display.style import style_tag

_PAIR = re.compile(r"--mb-([\w-]+): (?:var\(--jp-[\w-]+, )?light-dark\((#\w{6}), (#\w{6})\)")
COLOURS = {name: pair for name, *pair in _PAIR.findall(style_tag())}
HEAT = 0.62


def channels(colour: str) -> list[float]:
    return [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]


def contrast(a: list[float], b: list[float]) -> float:
    """WCAG 2: (L₁ + 0.05) / (L₂ + 0.05) of the relative luminances."""

    def luminance(colour: list[float]) -> float:
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_has_contrast(theme: int) -> None:
    colour = {name: channels(pair[theme]) for name, pair in COLOURS.items()}
    for paint, ground in (("ink", "page"), ("dim", "page"), ("ink", "gone"), ("ink", "new")):
        assert contrast(colour[paint], colour[ground]) >= 4.5, (paint, ground)
    for heat in ("heat", "heat-below"):
        darkest = [HEAT * a + (1 - HEAT) * b for a, b in zip(colour[heat], colour["page"], strict=True)]
        assert contrast(colour["ink"], darkest) >= 4.5, heat
    for line in ("accent", "other", "third", "fourth"):
        assert contrast(colour[line], colour["page"]) >= 3, line


def test_the_strongest_shade_is_the_one_tested() -> None:
    assert set(re.findall(r"calc\(var\(--mb-share\) \* (\d+)%\), transparent", style_tag())) == {
        f"{HEAT:.0%}".rstrip("%")
    }


def test_every_rule_is_about_cards() -> None:
    sheet = style_tag().removeprefix("<style>").removesuffix("</style>")
    selectors: list[str] = []
    depth = 0
    for part in re.split(r"([{}])", sheet):
        if part == "{":
            depth += 1
        elif part == "}":
            depth -= 1
        elif depth == 0 and part.strip():
            selectors += part.split(",")
    assert selectors and all(".mb-card" in selector for selector in selectors)
    assert depth == 0


def test_nothing_is_fetched_and_comments_are_gone() -> None:
    assert not re.search(r"url\(|@import|https?:|/\*|\n", style_tag())


def test_bars_and_shades_need_both_styles() -> None:
    """With only inline styles removed, a bar must fall back to its characters and not fill its cell."""
    assert ".mb-bar[style] {" in style_tag() and ".mb-heat td[style] .mb-shade { display: none; }" in style_tag()
