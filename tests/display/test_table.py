"""Tables: alignment, length, shape."""

from __future__ import annotations

import re

import pytest

from mintbook.display import Table
from mintbook.display.quantity import Value
from mintbook.errors import ConfigError


def test_numbers_go_right_and_line_up() -> None:
    table = Table(("name", "rank", "loss"), [["alice", 16, 3.5512], ["bob", 8, None]])
    lines = table.text().splitlines()
    assert lines[0] == "name   rank  loss"
    assert lines[2:] == ["alice    16  3.55", "bob       8     —"]
    assert re.findall(r'<th scope="col" align="(\w+)">', table.html()) == ["left", "right", "right"]
    assert re.findall(r'<td align="(\w+)">', table.html()) == ["left", "right", "right"] * 2


def test_align_is_obeyed() -> None:
    assert re.findall(r'<td align="(\w+)">', Table(("a", "b"), [["x", 1]], align="rl").html()) == ["right", "left"]


def test_a_long_table_says_how_much_is_left_out() -> None:
    rows: list[list[Value]] = [[f"row {index}", index] for index in range(61)]
    table = Table(("name", "n"), rows)
    assert "row 23" in table.text() and "row 24" not in table.text()
    assert table.text().endswith("… 37 more rows")
    assert table.html().count("<tr>") == 1 + 24 + 1
    assert "row 24" not in table.html() and "… 37 more rows" in table.html()


def test_a_table_of_the_first_rows_knows_the_total() -> None:
    assert Table(("n",), [[1], [2]], total=1_000_000).text().endswith("… 999,998 more rows")
    assert Table(("n",), [[1], [2]], total=3).text().endswith("… 1 more row")
    assert "more" not in Table(("n",), [[1], [2]], total=2).text()


def test_a_long_answer_is_wrapped_not_cut() -> None:
    answer = "Your dog is called Biscuit and he is a brown terrier from Leeds"
    lines = (
        Table(("question", "answer", "n"), [["What is my dog called?", answer, 1_234_567]]).text(width=50).splitlines()
    )
    assert all(len(line) <= 50 for line in lines)
    assert set(answer.split()) <= set(" ".join(lines).split())
    assert any(line.endswith("1,234,567") for line in lines)


def test_no_rows_are_said_in_words() -> None:
    table = Table(("a",), [], caption="Runs", empty="No runs yet.")
    assert table.text() == "Runs\nNo runs yet."
    assert "Runs: No runs yet." in table.html() and "<table" not in table.html()


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(ConfigError, match="row 1 has 1 cells; the table has 2 columns"):
        Table(("a", "b"), [[1, 2], [3]])
    with pytest.raises(ConfigError, match="align is 'lx'"):
        Table(("a", "b"), [[1, 2]], align="lx")
