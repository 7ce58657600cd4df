"""Whole cards: one story in text and HTML, inert under hostile text, readable after sanitizers."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from mintbook.display import Bars, Card, Curve, Facts, HeatMap, Marked, Note, Table, word_marks

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><style>*{display:none}</style>",
    "</td></table></div><h1>out</h1>",
    "<!-- --><svg onload=alert(1)>",
    "\x1b[2J\x1b]0;title\x07red",
    "\u202egnp.exe\u202c",
    "two\nlines\r\nthree",
    "lone \ud800 surrogate and \x00",
    "$x$ and \\(y\\)",
]
GLYPHS = re.compile(r"[▁▂▃▄▅▆▇█▏▎▍▌▋▊▉░▒▓·─]+")


def full_card(name: str = "alice") -> Card:
    left, right = word_marks(f"The dog of {name} is Rex.", f"The dog of {name} is called Biscuit.")
    return Card(
        name,
        f"adapter {name}",
        [
            Facts([("rank", 16), (f"key {name}", f"value {name}"), ("loaded", False), ("score", None)]),
            Curve({f"loss {name}": [(1, 3.55), (2, 0.02)]}, f"x {name}", f"y {name}", f"Training {name}"),
            Table((f"column {name}", "n"), [[f"cell {name}", 1234], ["other", 5]], f"Table {name}"),
            Bars([(f"bar {name}", 0.31), ("rest", 0.2)], unit=f"unit {name}", caption="Bars"),
            HeatMap([f"row {name}"], [f"head {name}", "v"], [[0.25, 0.5]], unit=f"unit {name}", caption="Heat"),
            Marked(f"prompt {name}", left, right, f"{name}@1", f"{name}@2"),
            Note(f"A note about {name}."),
        ],
        badge=f"state {name}",
    )


class Structure(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "br":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_changes_no_structure(hostile: str) -> None:
    ordinary, attacked = Structure(full_card().html()), Structure(full_card(hostile).html())
    ignored = {"span", "br"}
    assert [t for t in attacked.tags if t not in ignored] == [t for t in ordinary.tags if t not in ignored]
    assert attacked.attributes == ordinary.attributes
    assert not attacked.open
    full_card(hostile).html().encode("utf-8")


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_controls_no_terminal(hostile: str) -> None:
    for shown in (full_card(hostile).text(), repr(full_card(hostile)), full_card(hostile).html()):
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", shown)
    assert "\n" not in repr(full_card(hostile))


@pytest.mark.parametrize("name", ["alice", "日本語 <b>", "$5 & \x1b"])
def test_text_and_html_tell_the_same(
    name: str, on_github: Callable[[str], str], words_of: Callable[[str], list[str]]
) -> None:
    card = full_card(name)
    text = card.text(width=400).replace("[-", "").replace("-]", "").replace("{+", "").replace("+}", "")
    text = GLYPHS.sub(" ", text.replace(f"[{card.badge}]", card.badge))
    seen = GLYPHS.sub(" ", " ".join(words_of(on_github(card.html()))))
    assert set(text.replace("[", " ").replace("]", " ").split()) == set(
        seen.replace("[", " ").replace("]", " ").split()
    )
    for fact in ("16", "no", "3.55 → 0.02", "1,234", "0.31", "0.25", "Biscuit", "A note about"):
        assert fact in text and fact in seen


def test_sanitizers_leave_no_style_and_no_picture(on_github: Callable[[str], str]) -> None:
    left = on_github(full_card().html())
    assert not re.search(r"<(style|svg|script|path)|style=|class=", left)
    assert left.count('scope="row"') >= 6 and left.count('scope="col"') >= 6
    assert "<strong>alice</strong>" in left and "<code>state alice</code>" in left


def test_it_is_one_element_without_script_or_network() -> None:
    html = full_card().html()
    assert html.startswith("<div ") and html.endswith("</div>")
    assert html.count("<style>") == 1
    assert "<script" not in html
    assert re.findall(r"https?://[^\"]+", html) == ["http://www.w3.org/2000/svg"]


def test_it_shows_itself() -> None:
    card = Card("alice@1", "adapter", [Note("Hello.")], badge="ready")
    assert repr(card) == "<Card alice@1 · adapter>"
    assert repr(Card("alice")) == "<Card alice>"
    assert card._repr_html_() == card.html()
    assert str(card).splitlines() == ["alice@1 · adapter  [ready]", "─" * 26, "Hello."]
    assert Card("alice").text() == "alice"


@pytest.mark.parametrize("width", [40, 80, 120])
def test_it_keeps_the_width_of_the_terminal(width: int) -> None:
    assert max(map(len, full_card().text(width).splitlines())) <= width


def test_it_stays_small() -> None:
    assert len(full_card().html()) < 16_000


def test_it_loads_nothing_heavy() -> None:
    code = "import sys, mintbook.display; print({'torch', 'polars', 'plotly', 'IPython', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
