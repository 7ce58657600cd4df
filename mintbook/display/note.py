"""A paragraph."""

from __future__ import annotations

from dataclasses import dataclass

from mintbook.display.escape import escaped_lines, visible_lines
from mintbook.display.terminal import wrap


@dataclass(frozen=True, slots=True)
class Note:
    """One paragraph of plain words; the ends of its lines are kept.

    >>> print(Note("alice has not been trained yet.").text(width=20))
    alice has not been
    trained yet.
    """

    words: str

    def text(self, width: int = 80) -> str:
        """Return the paragraph wrapped to ``width`` columns."""
        return "\n".join(line for paragraph in visible_lines(self.words) for line in wrap(paragraph, width))

    def html(self) -> str:
        """Return the paragraph as a ``<p>``."""
        return f'<p class="mb-note">{escaped_lines(self.words)}</p>'
