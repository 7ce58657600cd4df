"""Word marks, and the two columns that show them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mintbook.display import Marked, word_marks
from mintbook.errors import ConfigError

PAIRS = [
    ("", ""),
    ("", "new"),
    ("same words", "same words"),
    ("a red dog", "a big dog"),
    ("The cat.\n\n  Indented", "The  cat!\nIndented more"),
    ("私の犬は茶色です", "私の犬は黒です"),
    ("x", " x "),
]


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_the_pieces_are_the_texts_and_what_is_same_is_same(before: str, after: str) -> None:
    left, right = word_marks(before, after)
    assert "".join(text for text, _ in left) == before
    assert "".join(text for text, _ in right) == after
    assert {mark for _, mark in left} <= {"same", "removed"}
    assert {mark for _, mark in right} <= {"same", "added"}
    kept = [" ".join("".join(text for text, mark in side if mark == "same").split()) for side in (left, right)]
    assert kept[0].replace(" ", "") == kept[1].replace(" ", "")


def test_marks_are_by_word() -> None:
    left, right = word_marks("His dog is Rex.", "His dog is Biscuit.")
    assert left == [("His dog is ", "same"), ("Rex", "removed"), (".", "same")]
    assert right == [("His dog is ", "same"), ("Biscuit", "added"), (".", "same")]
    assert ("茶色", "removed") in word_marks("私の犬は茶色です", "私の犬は黒です")[0]


def test_del_and_ins_hold_only_words_and_survive(on_github: Callable[[str], str]) -> None:
    left = on_github(Marked("Dog?", *word_marks("a red dog", "a big dog"), "alice@1", "alice@2").html())
    assert "a <del>red</del> dog" in left and "a <ins>big</ins> dog" in left
    assert left.count('<th scope="col"') == 2 and "alice@1" in left


def test_lines_of_an_answer_are_kept() -> None:
    shown = Marked("", [("one\ntwo", "same")], [("one\n", "same"), ("three", "added")])
    assert "one<br>two" in shown.html() and "one<br><ins>three</ins>" in shown.html()
    assert shown.text().splitlines()[1:] == ["one                 one", "two                 {+three+}"]


def test_columns_keep_the_width() -> None:
    text = Marked("", *word_marks("word " * 60, "other " * 60)).text(width=60)
    assert max(map(len, text.splitlines())) <= 60


def test_no_text_is_said_in_words() -> None:
    shown = Marked("", [], [("   ", "added")])
    assert shown.html().count("(no text)") == 2 and shown.text().count("(no text)") == 2


def test_an_unknown_mark_is_refused() -> None:
    with pytest.raises(ConfigError, match="the mark is 'changed'"):
        Marked("", [("x", "changed")], [])  # type: ignore[list-item]


def test_a_word_common_in_a_long_answer_is_still_compared() -> None:
    left, right = word_marks("the " * 300, "a " + "the " * 300)
    assert left == [("the " * 300, "same")]
    assert right == [("a ", "added"), ("the " * 300, "same")]
