"""What changes in place: a notebook's card is replaced and stays, a passing line goes, a log gets lines."""

from __future__ import annotations

import sys

import pytest

from mintbook.display import Card
from mintbook.display import live as module
from mintbook.display.live import Live


class Handle:
    def __init__(self, shown: list[str]) -> None:
        self.shown = shown

    def update(self, bundle: dict[str, str], raw: bool) -> None:
        assert raw
        assert set(bundle) == {"text/html", "text/plain"}
        self.shown.append(bundle["text/html"])


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PATIENCE_S", "NOTEBOOK_EVERY_S", "LOG_EVERY_S", "TERMINAL_EVERY_S"):
        monkeypatch.setattr(module, name, 0.0)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch, at_once: None) -> list[str]:
    display = pytest.importorskip("IPython.display")
    shown: list[str] = []

    def show(bundle: dict[str, str], raw: bool, display_id: bool) -> Handle:
        handle = Handle(shown)
        handle.update(bundle, raw)
        return handle

    monkeypatch.setattr(module, "_in_notebook", lambda: True)
    monkeypatch.setattr(display, "display", show)
    return shown


def test_a_card_is_replaced_and_its_last_form_stays(notebook: list[str]) -> None:
    with Live() as live:
        live.show(lambda: Card("one"), lambda: "one")
        live.show(lambda: Card("two"), lambda: "two")
        live.close(lambda: Card("end"), lambda: "end")
    assert ["one" in html or "two" in html or "end" in html for html in notebook] == [True] * 3
    assert "end" in notebook[-1]
    assert live.left_a_card


def test_a_passing_line_leaves_nothing_behind(notebook: list[str]) -> None:
    with Live() as live:
        live.line("reading", 0.5)
    assert "reading: 50%" in notebook[0]
    assert notebook[-1] == ""
    assert not live.left_a_card


def test_what_ends_at_once_is_not_shown(notebook: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 60.0)
    with Live() as live:
        live.line("reading")
        live.close(lambda: Card("end"), lambda: "end")
    assert notebook == []


def test_a_log_gets_lines_and_no_control_characters(at_once: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert not sys.stderr.isatty()
    with Live() as live:
        live.line("reading", 0.25)
        live.line("reading", 0.5)
    assert capsys.readouterr().err.splitlines() == ["reading: 25%", "reading: 50%"]
