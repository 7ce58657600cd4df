"""A grid of numbers, shaded by size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mintbook.display.block import caption_text
from mintbook.display.escape import escaped, one_line
from mintbook.display.markup import caption, cell, empty, heading, row
from mintbook.display.quantity import column_texts
from mintbook.display.terminal import lined_up, wrap
from mintbook.errors import ConfigError

_SHADES = "·░▒▓█"


@dataclass(frozen=True, slots=True)
class HeatMap:
    """A number per row and column, shaded by its size beside the largest one; a number below zero has the other hue.

    ``values`` is ``[len(rows)][len(columns)]``; None and NaN are left unshaded. Raises `ConfigError` for another shape.

    >>> print(HeatMap(["layer 0", "layer 1"], ["q", "v"], [[0.12, 0.4], [0.2, 0.0]]).text())
                  q       v
    layer 0  ▒ 0.12  █ 0.40
    layer 1  ▒ 0.20  · 0.00
    """

    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    unit: str = ""
    caption: str = ""
    empty: str = "Nothing to compare yet."

    def __post_init__(self) -> None:
        if len(self.values) != len(self.rows) or any(len(line) != len(self.columns) for line in self.values):
            found = f"{len(self.values)} rows of {sorted({len(line) for line in self.values})} values"
            named = f"{len(self.rows)} rows and {len(self.columns)} columns"
            raise ConfigError(f"the heat map names {named}; its values are {found}.")

    def text(self, width: int = 80) -> str:
        """Return the grid with a shading character before each number."""
        title = one_line(caption_text(self.caption, self.unit))
        lines = wrap(title, width) if title else []
        if not self.rows or not self.columns:
            return "\n".join([*lines, self.empty])
        cells = [
            [one_line(name), *(f"{_shade(share)} {number}".strip() for number, share in line)]
            for name, line in zip(self.rows, self._cells(), strict=True)
        ]
        head = ["", *map(one_line, self.columns)]
        grid = lined_up([head, *cells], [False] + [True] * len(self.columns), width)
        return "\n".join(lines + [line for row_lines in grid for line in row_lines])

    def html(self) -> str:
        """Return a table with the number in each cell, shaded by colour, or by a character where styles are removed."""
        title = caption_text(self.caption, self.unit)
        if not self.rows or not self.columns:
            return empty(title, self.empty)
        head = row(["<td></td>", *(heading(escaped(name), "col", right=True) for name in self.columns)])
        body = "".join(
            row([heading(escaped(name), "row"), *(_shaded(number, share) for number, share in line)])
            for name, line in zip(self.rows, self._cells(), strict=True)
        )
        table = f"{caption(title)}<thead>{head}</thead><tbody>{body}</tbody>"
        return f'<div class="mb-wide"><table class="mb-heat">{table}</table></div>'

    def _cells(self) -> list[list[tuple[str, float | None]]]:
        """Return each cell's number and its signed share of the largest size, None where there is no number."""
        flat = [value for line in self.values for value in line]
        known = [value if value is not None and math.isfinite(value) else None for value in flat]
        largest = max((abs(value) for value in known if value is not None), default=0.0) or 1.0
        shares = [None if value is None else value / largest for value in known]
        cells = list(zip(column_texts(flat, digits=2, keep_small=False), shares, strict=True))
        return [cells[start : start + len(self.columns)] for start in range(0, len(cells), len(self.columns))]


def _shade(share: float | None) -> str:
    return "" if share is None else _SHADES[math.ceil(abs(share) * 4 - 1e-9)]


def _shaded(number: str, share: float | None) -> str:
    if share is None:
        return cell(number, right=True)
    below = ' class="mb-below"' if share < 0 else ""
    shade = f'<span class="mb-shade" aria-hidden="true">{_shade(share)} </span>'
    return f'<td align="right"{below} style="--mb-share:{abs(share):.3f}">{shade}{number}</td>'
