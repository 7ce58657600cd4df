"""Columns of characters: how wide a text is in a terminal, and how to clip, pad, wrap and line up texts."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import zip_longest

_NARROWEST = 6


def columns_of(text: str) -> int:
    """Return how many terminal columns ``text`` takes; wide East Asian characters and emoji take two.

    >>> columns_of("abc"), columns_of("日本"), columns_of("e\u0301")
    (3, 4, 1)
    """
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def clip(text: str, width: int) -> str:
    """Return ``text`` cut to ``width`` columns, its end replaced by ``…`` where something was cut.

    >>> clip("layers.0.self_attn", 9)
    'layers.0…'
    """
    if columns_of(text) <= width:
        return text
    return _head(text, max(0, width - 1)) + "…"


def pad(text: str, width: int, *, right: bool = False) -> str:
    """Return ``text`` filled with spaces to ``width`` columns, on the left of it when ``right`` aligned."""
    spaces = " " * max(0, width - columns_of(text))
    return spaces + text if right else text + spaces


def wrap(text: str, width: int) -> list[str]:
    """Return ``text`` broken at spaces into lines of at most ``width`` columns; a longer word is broken anywhere.

    >>> wrap("the dog is called Rex", 10)
    ['the dog is', 'called Rex']
    """
    lines: list[str] = []
    line: str | None = None
    for word in text.split(" "):
        joined = word if line is None else f"{line} {word}"
        if columns_of(joined) <= width:
            line = joined
            continue
        if line is not None:
            lines.append(line)
        line = word
        while columns_of(line) > width:
            head = _head(line, width) or line[:1]
            lines.append(head)
            line = line[len(head) :]
    return [*lines, line or ""]


def lined_up(rows: Sequence[Sequence[str]], right: Sequence[bool], width: int, *, gap: int = 2) -> list[list[str]]:
    """Return the lines of each of ``rows`` with aligned columns; what does not fit ``width`` is wrapped in its column.

    The first row is the head: it gives way to the cells below it, so that a number is never broken.
    """
    widths = [max(columns_of(row[column]) for row in rows) for column in range(len(right))]
    floors = [
        max((columns_of(row[column]) for row in rows[1:]), default=_NARROWEST) if right[column] else _NARROWEST
        for column in range(len(right))
    ]
    for _ in range(sum(widths) + gap * (len(widths) - 1) - width):
        spare = [(have, column) for column, have in enumerate(widths) if have > floors[column]]
        if not spare:
            break
        widths[max(spare)[1]] -= 1
    lined: list[list[str]] = []
    for row in rows:
        cells = [wrap(cell, widths[column]) for column, cell in enumerate(row)]
        lines = [
            (" " * gap)
            .join(pad(part, widths[column], right=right[column]) for column, part in enumerate(parts))
            .rstrip()
            for parts in zip_longest(*cells, fillvalue="")
        ]
        lined.append(lines)
    return lined


def _columns(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _head(text: str, width: int) -> str:
    taken = 0
    for index, character in enumerate(text):
        taken += _columns(character)
        if taken > width:
            return text[:index]
    return text
