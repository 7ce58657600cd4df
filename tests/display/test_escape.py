"""Hostile text is made visible and inert."""

from __future__ import annotations

import unicodedata

import pytest

from mintbook.display.escape import escaped, escaped_attribute, escaped_lines, one_line, visible_lines


@pytest.mark.parametrize("code", [*range(0x20), *range(0x7F, 0xA0), 0x202E, 0x2066, 0x200F, 0xFEFF, 0xE0041, 0xD800])
def test_no_invisible_character_gets_through(code: int) -> None:
    shown = one_line(f"a{chr(code)}b")
    assert shown[0] == "a" and shown[-1] == "b" and len(shown) > 2
    assert not any(unicodedata.category(character) in ("Cc", "Cf", "Cs") for character in shown)


def test_what_languages_and_emoji_need_is_left_alone() -> None:
    for text in ("naïve café", "日本語", "עברית", "👩\u200d🔬", "می\u200cخواهم", "e\u0301"):
        assert one_line(text) == text


def test_every_end_of_line_is_one() -> None:
    assert visible_lines("a\nb\r\nc\rd\u2028e\x85f") == ["a", "b", "c", "d", "e", "f"]
    assert escaped_lines("a\r\nb") == "a<br>b"
    assert "\n" not in escaped("a\nb")


def test_markup_is_escaped_in_content_and_in_attributes() -> None:
    hostile = "<b a=\"1\" b='2'>&"
    assert escaped(hostile) == "&lt;b a=&quot;1&quot; b=&#x27;2&#x27;&gt;&amp;"
    assert escaped_attribute(hostile) == escaped(hostile)


def test_maths_delimiters_stand_alone_in_their_text_node() -> None:
    assert escaped("$5 or $6") == "<span>$</span>5 or <span>$</span>6"
    assert escaped(r"\(x\)") == r"<span>\</span>(x<span>\</span>)"
    assert escaped_attribute("$5") == "$5"
