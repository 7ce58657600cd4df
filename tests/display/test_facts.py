"""Facts: keys and values."""

from __future__ import annotations

from mintbook.display import Facts


def test_a_long_value_goes_on_below_itself() -> None:
    lines = Facts([("targets", "q_proj k_proj v_proj o_proj"), ("rank", 16)]).text(width=24).splitlines()
    assert lines == ["targets  q_proj k_proj", "         v_proj o_proj", "rank     16"]


def test_keys_are_row_headings() -> None:
    html = Facts([("rank", 16), ("note", None)]).html()
    assert html.count('<th scope="row"') == 2
    assert '<td align="left">16</td>' in html and '<td align="left">—</td>' in html


def test_nothing_is_said_in_words() -> None:
    assert Facts([]).text() == "Nothing is known yet."
    assert "Nothing is known yet." in Facts([]).html()
