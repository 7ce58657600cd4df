"""Texts line up in a terminal, whatever they are made of."""

from __future__ import annotations

import pytest

from mintbook.display.terminal import clip, columns_of, lined_up, pad, wrap


def test_wide_and_combining_characters_are_counted_as_they_are_drawn() -> None:
    assert [columns_of(text) for text in ("abc", "日本", "e\u0301", "🙂", "")] == [3, 4, 1, 2, 0]
    assert columns_of(pad("日本", 7)) == columns_of(pad("日本", 7, right=True)) == 7
    assert clip("日本語", 5) == "日本…"


@pytest.mark.parametrize("width", [1, 2, 5, 12, 80])
def test_wrapping_loses_nothing_and_keeps_the_width(width: int) -> None:
    text = "the quick  brown 狐 jumped-over-the-very-lazy dog"
    lines = wrap(text, width)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(columns_of(line) <= max(width, 2) for line in lines)


def test_indentation_is_kept() -> None:
    assert wrap("    return 1", 20) == ["    return 1"]


def test_text_gives_way_to_numbers() -> None:
    rows = [("a long name of a thing", "value in units"), ("model.layers.11.mlp", "1,234,567.25")]
    (head, body) = lined_up(rows, [False, True], 24)
    assert len(body) > 1 and len(head) > 1
    assert "1,234,567.25" in body[0]
    assert all(columns_of(line) <= 24 for line in [*head, *body])
    assert "".join(line.split()[0] for line in body) == "model.layers.11.mlp"
