"""The few pieces of HTML that several blocks share; content is handed over already escaped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from mintbook.display.escape import escaped


def heading(content: str, scope: Literal["row", "col"], *, right: bool = False) -> str:
    """Return a ``<th>``; its side is an attribute, which stays where styles are removed."""
    return f'<th scope="{scope}" align="{"right" if right else "left"}">{content}</th>'


def cell(content: str, *, right: bool = False, top: bool = False) -> str:
    """Return a ``<td>``, its content at the ``top`` of a high row or on the common baseline."""
    place = f'align="{"right" if right else "left"}"' + (' valign="top"' if top else "")
    return f"<td {place}>{content}</td>"


def row(cells: Iterable[str]) -> str:
    """Return a ``<tr>`` of ``cells``."""
    return f"<tr>{''.join(cells)}</tr>"


def rest_row(words: str, columns: int) -> str:
    """Return a row over all ``columns`` that says how much is not shown; nothing for no words."""
    return f'<tr><td class="mb-rest" align="left" colspan="{columns}">{words}</td></tr>' if words else ""


def caption(text: str) -> str:
    """Return a ``<caption>`` of plain ``text``; nothing for no text."""
    return f"<caption><strong>{escaped(text)}</strong></caption>" if text else ""


def empty(title: str, words: str) -> str:
    """Return the paragraph that stands where a block has nothing to show."""
    return f'<p class="mb-empty">{escaped(f"{title}: {words}" if title else words)}</p>'
