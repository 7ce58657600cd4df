"""What a card is made of: anything that tells the same story as text and as HTML."""

from __future__ import annotations

from typing import Protocol


class Block(Protocol):
    """A part of a card."""

    def text(self, width: int = 80) -> str:
        """Return the block for a terminal of ``width`` columns."""

    def html(self) -> str:
        """Return the block as escaped HTML that still reads when styles and SVG are removed."""


def caption_text(caption: str, unit: str) -> str:
    """Return the caption of a block with its unit.

    >>> caption_text("Shift per layer", "nats"), caption_text("", "nats")
    ('Shift per layer (nats)', 'nats')
    """
    return f"{caption} ({unit})" if caption and unit else caption or unit
