"""Keys and their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mintbook.display.escape import escaped, one_line
from mintbook.display.markup import cell, empty, heading, row
from mintbook.display.quantity import Value, value_text
from mintbook.display.terminal import clip, columns_of, pad, wrap

_WIDEST_KEY = 28


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about one thing, as ``(key, value)`` pairs in the order to be read.

    >>> print(Facts([("rank", 16), ("alpha", "32 (α/r)"), ("loaded", False)]).text())
    rank    16
    alpha   32 (α/r)
    loaded  no
    """

    pairs: Sequence[tuple[str, Value]]
    empty: str = "Nothing is known yet."

    def text(self, width: int = 80) -> str:
        """Return one line per pair; a long value goes on below itself."""
        if not self.pairs:
            return self.empty
        keys = [clip(one_line(key), _WIDEST_KEY) for key, _ in self.pairs]
        column = max(map(columns_of, keys)) + 2
        lines: list[str] = []
        for key, (_, value) in zip(keys, self.pairs, strict=True):
            first, *rest = wrap(one_line(value_text(value)), max(12, width - column))
            lines.append(pad(key, column) + first)
            lines.extend(" " * column + line for line in rest)
        return "\n".join(lines)

    def html(self) -> str:
        """Return a table of two columns whose keys are row headings."""
        if not self.pairs:
            return empty("", self.empty)
        rows = (row([heading(escaped(key), "row"), cell(escaped(value_text(value)))]) for key, value in self.pairs)
        return f'<table class="mb-facts"><tbody>{"".join(rows)}</tbody></table>'
