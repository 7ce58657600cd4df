"""What makes an object show itself: one card, as HTML for a page and as text for everything else."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Container
from typing import Any

from mintbook.display.card import Card


class Shown:
    """An object with a card; Jupyter shows the HTML and keeps the text beside it for readers that show none."""

    __slots__ = ()

    @abstractmethod
    def card(self) -> Card:
        """Return what a person wants to know about the object."""

    def _repr_html_(self) -> str | None:
        return self.card().html()

    def _repr_mimebundle_(
        self, include: Container[str] | None = None, exclude: Container[str] | None = None
    ) -> dict[str, Any]:
        return self.card()._repr_mimebundle_()
