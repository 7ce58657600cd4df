"""Columns of characters: how wide a text is in a terminal, and how to clip, pad, wrap and line up texts."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

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
    lines, line = [], ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if columns_of(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        line = word
        while columns_of(line) > width:
            head = _head(line, width) or line[:1]
            lines.append(head)
            line = line[len(head) :]
    return [*lines, line]


def lined_up(rows: Sequence[Sequence[str]], right: Sequence[bool], width: int, *, gap: int = 2) -> list[str]:
    """Return ``rows`` as lines with aligned columns; those that are not ``right`` aligned are clipped to fit ``width``.

    The first row is the head: it gives way to the cells below it, so that a number is never clipped.
    """
    widths = [max(columns_of(row[column]) for row in rows) for column in range(len(right))]
    floors = [
        max((columns_of(row[column]) for row in rows[1:]), default=_NARROWEST) if right[column] else _NARROWEST
        for column in range(len(right))
    ]
    excess = sum(widths) + gap * (len(widths) - 1) - width
    while excess > 0:
        spare = [have - least for have, least in zip(widths, floors, strict=True)]
        if max(spare) <= 0:
            break
        widest = max((have, column) for column, have in enumerate(widths) if spare[column] > 0)[1]
        widths[widest] -= 1
        excess -= 1
    return [
        (" " * gap)
        .join(pad(clip(cell, widths[column]), widths[column], right=right[column]) for column, cell in enumerate(row))
        .rstrip()
        for row in rows
    ]


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
