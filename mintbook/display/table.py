"""Rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mintbook.display.escape import escaped, one_line
from mintbook.display.markup import caption, cell, empty, heading, rest_row, row
from mintbook.display.quantity import Value, column_texts, is_number
from mintbook.display.terminal import columns_of, lined_up, wrap
from mintbook.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of values under named columns; numbers are formatted per column and right aligned.

    At most ``limit`` rows are shown, and how many there are beyond them is said. ``total`` is the number of rows that
    exist, where ``rows`` holds only the first of them. ``align`` has a letter per column, ``l`` or ``r``; without it, a
    column of numbers goes right. Raises `ConfigError` for a row of another length than ``columns``.

    >>> print(Table(("name", "rank"), [["alice", 16], ["bob", 8]]).text())
    name   rank
    ───────────
    alice    16
    bob       8
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]
    caption: str = ""
    align: str = ""
    limit: int = 24
    total: int | None = None
    empty: str = "No rows yet."

    def __post_init__(self) -> None:
        for index, line in enumerate(self.rows):
            if len(line) != len(self.columns):
                raise ConfigError(f"row {index} has {len(line)} cells; the table has {len(self.columns)} columns.")
        if self.align and (len(self.align) != len(self.columns) or set(self.align) - {"l", "r"}):
            raise ConfigError(f"align is {self.align!r}; it needs l or r for each of the {len(self.columns)} columns.")

    def text(self, width: int = 80) -> str:
        """Return the table with aligned columns; what does not fit is wrapped, but never a number."""
        lines = wrap(one_line(self.caption), width) if self.caption else []
        if not self.rows:
            return "\n".join([*lines, self.empty])
        head = [one_line(name) for name in self.columns]
        cells = [list(map(one_line, line)) for line in self._shown()]
        head_lines, *body = lined_up([head, *cells], self._right(), width)
        table = [line for row_lines in body for line in row_lines]
        rule = "─" * max(map(columns_of, [*head_lines, *table]))
        rest = [self._rest()] if self._rest() else []
        return "\n".join([*lines, *head_lines, rule, *table, *rest])

    def html(self) -> str:
        """Return a ``<table>`` with column headings, its alignment kept by ``align`` where styles are removed."""
        if not self.rows:
            return empty(self.caption, self.empty)
        sides = self._right()
        head = row(heading(escaped(name), "col", right=side) for name, side in zip(self.columns, sides, strict=True))
        body = "".join(
            row(cell(escaped(words), right=side) for words, side in zip(line, sides, strict=True))
            for line in self._shown()
        )
        return (
            f'<div class="mb-wide"><table class="mb-table">{caption(self.caption)}<thead>{head}</thead>'
            f"<tbody>{body}{rest_row(self._rest(), len(self.columns))}</tbody></table></div>"
        )

    def _right(self) -> list[bool]:
        if self.align:
            return [letter == "r" for letter in self.align]
        return [
            any(map(is_number, column)) and all(value is None or is_number(value) for value in column)
            for column in self._columns()
        ]

    def _columns(self) -> list[list[Value]]:
        return [[line[index] for line in self.rows[: self.limit]] for index in range(len(self.columns))]

    def _shown(self) -> list[tuple[str, ...]]:
        return list(zip(*map(column_texts, self._columns()), strict=True))

    def _rest(self) -> str:
        shown = min(len(self.rows), self.limit)
        more = max(len(self.rows), self.total or 0) - shown
        return f"… {more:,} more row{'s' if more > 1 else ''}" if more else ""
