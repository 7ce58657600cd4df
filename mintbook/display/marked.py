"""Two texts side by side, with the words that differ marked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby, zip_longest
from typing import Literal, get_args

from mintbook.display.escape import escaped, escaped_lines, one_line, visible_lines
from mintbook.display.markup import caption, cell, heading, row
from mintbook.display.terminal import columns_of, pad, wrap
from mintbook.errors import ConfigError

Mark = Literal["same", "removed", "added"]
Pieces = Sequence[tuple[str, Mark]]

# Scripts written without spaces are compared character by character.
_WORD = re.compile(r"(?:[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+|[^\w\s]+)\s*|\s+")
_SIGNS = {"same": ("", ""), "removed": ("[-", "-]"), "added": ("{+", "+}")}
_TAGS = {"removed": "del", "added": "ins"}


def word_marks(before: str, after: str) -> tuple[list[tuple[str, Mark]], list[tuple[str, Mark]]]:
    """Return both texts in pieces marked word by word; the pieces of each, joined, are the text itself.

    >>> word_marks("His dog is Rex.", "His dog is called Rex.")[1]
    [('His dog is ', 'same'), ('called ', 'added'), ('Rex.', 'same')]
    """
    left, right = _WORD.findall(before), _WORD.findall(after)
    matcher = SequenceMatcher(None, [word.strip() for word in left], [word.strip() for word in right], autojunk=False)
    marked_left: list[tuple[str, Mark]] = []
    marked_right: list[tuple[str, Mark]] = []
    for kind, i, j, k, n in matcher.get_opcodes():
        marked_left.extend((word, "same" if kind == "equal" else "removed") for word in left[i:j])
        marked_right.extend((word, "same" if kind == "equal" else "added") for word in right[k:n])
    return _joined(marked_left), _joined(marked_right)


@dataclass(frozen=True, slots=True)
class Marked:
    """Two texts in pieces ``(text, mark)``, as `word_marks` makes them, under ``title`` and a label for each side.

    Raises `ConfigError` for a mark that is not ``same``, ``removed`` or ``added``.

    >>> left, right = word_marks("a red dog", "a big dog")
    >>> print(Marked("The dog", left, right).text(width=40))
    The dog
    before              after
    a [-red-] dog       a {+big+} dog
    """

    title: str
    left: Pieces
    right: Pieces
    left_label: str = "before"
    right_label: str = "after"

    def __post_init__(self) -> None:
        for _, mark in (*self.left, *self.right):
            if mark not in get_args(Mark):
                raise ConfigError(f"the mark is {mark!r}; it must be one of {', '.join(get_args(Mark))}.")

    def text(self, width: int = 80) -> str:
        """Return both texts in two columns, removed words as ``[-so-]`` and added ones as ``{+so+}``."""
        column = (width - 2) // 2
        sides = [
            [line for text in [label, *_signed(pieces)] for line in wrap(text, column)]
            for label, pieces in ((one_line(self.left_label), self.left), (one_line(self.right_label), self.right))
        ]
        used = max(map(columns_of, sides[0]))
        rows = [f"{pad(a, max(used, min(column, 18)))}  {b}".rstrip() for a, b in zip_longest(*sides, fillvalue="")]
        return "\n".join([*(wrap(one_line(self.title), width) if self.title else []), *rows])

    def html(self) -> str:
        """Return a table of two columns with ``<del>`` and ``<ins>``."""
        heads = row(heading(escaped(label), "col") for label in (self.left_label, self.right_label))
        cells = row(cell(_tagged(pieces), top=True) for pieces in (self.left, self.right))
        return f'<table class="mb-marked">{caption(self.title)}<thead>{heads}</thead><tbody>{cells}</tbody></table>'


def _joined(pieces: Iterable[tuple[str, Mark]]) -> list[tuple[str, Mark]]:
    return [("".join(text for text, _ in run), mark) for mark, run in groupby(pieces, key=lambda piece: piece[1])]


def _edges(text: str) -> tuple[str, str, str]:
    """Return the whitespace before, the words, and the whitespace after: a mark holds only words."""
    words = text.strip()
    start = text.find(words) if words else len(text)
    return text[:start], words, text[start + len(words) :]


def _signed(pieces: Pieces) -> list[str]:
    parts = []
    for text, mark in pieces:
        before, words, after = _edges(text)
        opening, closing = _SIGNS[mark] if words else ("", "")
        parts.append(f"{before}{opening}{words}{closing}{after}")
    return visible_lines("".join(parts)) if any(text.strip() for text, _ in pieces) else ["(no text)"]


def _tagged(pieces: Pieces) -> str:
    if not any(text.strip() for text, _ in pieces):
        return '<span class="mb-empty">(no text)</span>'
    parts = []
    for text, mark in pieces:
        before, words, after = _edges(text)
        inner = escaped_lines(words)
        if mark in _TAGS and words:
            inner = f"<{_TAGS[mark]}>{inner}</{_TAGS[mark]}>"
        parts += [escaped_lines(before), inner, escaped_lines(after)]
    return "".join(parts)
