"""A card: how every object of mintbook shows itself."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from mintbook.display.block import Block
from mintbook.display.escape import escaped, escaped_attribute, one_line
from mintbook.display.style import style_tag
from mintbook.display.terminal import columns_of, wrap


@dataclass(frozen=True, slots=True, repr=False)
class Card:
    """A title, a state and blocks, told as plain text or as one self-contained ``<div>``.

    ``badge`` is the state of the thing in a word or two.

    >>> from mintbook.display.facts import Facts
    >>> card = Card("alice@1", "adapter", [Facts([("rank", 16)])], badge="ready")
    >>> card
    <Card alice@1 · adapter>
    >>> print(card)
    alice@1 · adapter  [ready]
    ──────────────────────────
    rank  16
    """

    title: str
    subtitle: str = ""
    blocks: Sequence[Block] = ()
    badge: str = ""

    def text(self, width: int = 80) -> str:
        """Return the card for a terminal of ``width`` columns."""
        badge = f"  [{one_line(self.badge)}]" if self.badge else ""
        head = wrap(self._heading() + badge, width)
        body = "\n\n".join(block.text(width) for block in self.blocks)
        rule = "─" * min(width, max(map(columns_of, [*head, *body.split("\n")])))
        return "\n".join([*head, rule, body] if body else head)

    def html(self) -> str:
        """Return one ``<div>`` with its own style; it needs no kernel, no script and no network."""
        subtitle = f' · <span class="mb-subtitle">{escaped(self.subtitle)}</span>' if self.subtitle else ""
        badge = f' <code class="mb-badge">{escaped(self.badge)}</code>' if self.badge else ""
        # The last two classes keep notebook front ends from typesetting $…$ in names and answers.
        classes = "mb-card tex2jax_ignore mathjax_ignore"
        return (
            f'<div class="{classes}" role="group" aria-label="{escaped_attribute(self._heading())}">{style_tag()}'
            f'<p class="mb-head"><strong><bdi>{escaped(self.title)}</bdi></strong>{subtitle}{badge}</p>'
            f"{''.join(block.html() for block in self.blocks)}</div>"
        )

    def _heading(self) -> str:
        return one_line(f"{self.title} · {self.subtitle}" if self.subtitle else self.title)

    def _repr_mimebundle_(
        self, include: Container[str] | None = None, exclude: Container[str] | None = None
    ) -> dict[str, str]:
        return {"text/html": self.html(), "text/plain": self.text()}

    def _repr_html_(self) -> str:
        return self.html()

    def __repr__(self) -> str:
        return f"<Card {self._heading()}>"

    def __str__(self) -> str:
        return self.text()
