"""What other programs make of a card's HTML."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from html.parser import HTMLParser

import pytest

_KEPT_TAGS = frozenset(
    {"b", "br", "caption", "code", "del", "div", "em", "i", "ins", "p", "pre", "span", "strong", "sub", "sup"}
    | {"table", "tbody", "td", "tfoot", "th", "thead", "tr"}
)
_KEPT_ATTRIBUTES = frozenset(
    {"align", "aria-hidden", "aria-label", "colspan", "dir", "role", "scope", "title", "valign"}
)
_BREAKS = frozenset({"br", "caption", "div", "p", "table", "td", "th", "tr"})


class _Sanitizer(HTMLParser):
    """Keeps an allowlist of tags and attributes and drops the named elements with all that is in them."""

    def __init__(self, dropped: frozenset[str], *, only_text: bool = False) -> None:
        super().__init__(convert_charrefs=True)
        self._dropped, self._only_text = dropped, only_text
        self._inside: list[str] = []
        self.out: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self._dropped:
            self._inside.append(tag)
        if self._inside or tag not in _KEPT_TAGS:
            return
        if self._only_text:
            self.out.append("\n" if tag in _BREAKS else "")
            return
        kept = "".join(f' {name}="{escape(value or "")}"' for name, value in attrs if name in _KEPT_ATTRIBUTES)
        self.out.append(f"<{tag}{kept}>")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self._dropped:
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if self._inside:
            if tag == self._inside[-1]:
                self._inside.pop()
        elif tag in _KEPT_TAGS and not self._only_text:
            self.out.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.out.append(data if self._only_text else escape(data))


def _through(html: str, *, dropped: frozenset[str], only_text: bool = False) -> str:
    sanitizer = _Sanitizer(dropped, only_text=only_text)
    sanitizer.feed(html)
    sanitizer.close()
    return "".join(sanitizer.out)


@pytest.fixture
def on_github() -> Callable[[str], str]:
    """HTML → HTML without style, script, SVG, classes and inline styles."""
    return lambda html: _through(html, dropped=frozenset({"style", "script", "svg"}))


@pytest.fixture
def untrusted() -> Callable[[str], str]:
    """HTML → HTML as an untrusted notebook shows it: of an SVG the tags are removed and the words stay."""
    return lambda html: _through(html, dropped=frozenset({"style", "script"}))


@pytest.fixture
def words_of() -> Callable[[str], list[str]]:
    """HTML → the texts a reader sees in it, one for each cell, paragraph or line."""

    def words(html: str) -> list[str]:
        text = _through(html, dropped=frozenset({"style", "script", "svg"}), only_text=True)
        return [" ".join(line.split()) for line in text.split("\n") if line.strip()]

    return words
