"""Labelled bars, one below the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mintbook.display.block import caption_text
from mintbook.display.escape import escaped, one_line
from mintbook.display.markup import caption, cell, empty, heading, rest_row, row
from mintbook.display.quantity import column_texts
from mintbook.display.terminal import clip, columns_of, pad, wrap

_EIGHTHS = " ▏▎▍▌▋▊▉"
_HTML_CELLS = 24
_WIDEST_LABEL = 44
_WIDEST_BAR = 40


def bar(share: float, cells: int) -> str:
    """Return a bar of block characters that fills ``share`` of ``cells``, to an eighth; above 0 it is never empty.

    >>> bar(0.5, 4), bar(0.3, 4), bar(0.0001, 4), bar(0.0, 4)
    ('██', '█▎', '▏', '')
    """
    eighths = max(round(share * cells * 8), 1 if share > 0 else 0)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


@dataclass(frozen=True, slots=True)
class Bars:
    """One bar per ``(label, value)``, as long as the value's size beside the largest; the sign is in the number.

    >>> print(Bars([("q_proj", 0.31), ("v_proj", 0.62)]).text(width=30))
    q_proj  ████████          0.31
    v_proj  ████████████████  0.62
    """

    items: Sequence[tuple[str, float | None]]
    unit: str = ""
    caption: str = ""
    limit: int = 40
    empty: str = "Nothing to compare yet."

    def text(self, width: int = 80) -> str:
        """Return label, bar of block characters and number, a line each."""
        title = one_line(caption_text(self.caption, self.unit))
        lines = wrap(title, width) if title else []
        if not self.items:
            return "\n".join([*lines, self.empty])
        labels = [clip(one_line(label), min(_WIDEST_LABEL, width // 2)) for label, _ in self.items[: self.limit]]
        numbers = column_texts(self._values())
        widest_label, widest_number = max(map(columns_of, labels)), max(map(columns_of, numbers))
        room = min(_WIDEST_BAR, max(8, width - widest_label - widest_number - 4))
        for label, share, number in zip(labels, self._shares(), numbers, strict=True):
            drawn = pad(bar(share, room), room)
            lines.append(f"{pad(label, widest_label)}  {drawn}  {pad(number, widest_number, right=True)}")
        return "\n".join([*lines, self._rest()] if self._rest() else lines)

    def html(self) -> str:
        """Return a table whose bars are block characters, drawn exactly where inline styles are kept."""
        title = caption_text(self.caption, self.unit)
        if not self.items:
            return empty(title, self.empty)
        values = self._values()
        drawn = (
            f'<span class="mb-bar{" mb-below" if (value or 0) < 0 else ""}" style="--mb-share:{share:.4f}">'
            f"{bar(share, _HTML_CELLS)}</span>"
            for value, share in zip(values, self._shares(), strict=True)
        )
        rows = "".join(
            row([heading(escaped(label), "row"), cell(span), cell(number, right=True)])
            for (label, _), span, number in zip(self.items, drawn, column_texts(values), strict=False)
        )
        return f'<table class="mb-bars">{caption(title)}<tbody>{rows}{rest_row(self._rest(), 3)}</tbody></table>'

    def _values(self) -> list[float | None]:
        return [value for _, value in self.items[: self.limit]]

    def _shares(self) -> list[float]:
        sizes = [abs(value) if value is not None and math.isfinite(value) else 0.0 for value in self._values()]
        largest = max(sizes)
        return [size / largest if largest else 0.0 for size in sizes]

    def _rest(self) -> str:
        more = len(self.items) - self.limit
        return f"… {more:,} more" if more > 0 else ""
