"""Heat maps carry their numbers; the shade comes on top."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest

from mintbook.display import HeatMap
from mintbook.errors import ConfigError


def test_shade_follows_size() -> None:
    heat = HeatMap(["0", "1"], ["q", "v"], [[0.0, -0.8], [0.2, 0.4]])
    assert re.findall(r"--mb-share:([\d.]+)", heat.html()) == ["0.000", "1.000", "0.250", "0.500"]
    assert heat.html().count("mb-below") == 1
    assert [re.findall("[·░▒▓█]", line) for line in heat.text().splitlines()[1:]] == [["·", "█"], ["░", "▒"]]


def test_without_styles_each_cell_has_number_and_shade(
    on_github: Callable[[str], str], words_of: Callable[[str], list[str]]
) -> None:
    html = HeatMap(["layer 0"], ["q", "v"], [[0.1, 0.84]], caption="Change", unit="relative").html()
    assert words_of(on_github(html)) == ["Change (relative)", "q", "v", "layer 0", "░ 0.10", "█ 0.84"]


def test_rows_and_columns_have_headings() -> None:
    html = HeatMap(["layer 0"], ["q", "v"], [[0.1, 0.84]]).html()
    assert html.count('scope="col"') == 2 and html.count('scope="row"') == 1


def test_what_is_not_known_is_not_shaded() -> None:
    html = HeatMap(["0"], ["q", "k", "v"], [[None, math.nan, 0.0]]).html()
    assert html.count("--mb-share") == 1
    assert ">—<" in html and ">nan<" in html
    assert "—" in HeatMap(["0"], ["q"], [[None]]).text()


def test_empty_and_wrong() -> None:
    assert HeatMap([], [], []).text() == "Nothing to compare yet."
    assert "Nothing to compare yet." in HeatMap([], ["q"], []).html()
    with pytest.raises(ConfigError, match="names 1 rows and 2 columns; its values are 1 rows of \\[1\\] values"):
        HeatMap(["0"], ["q", "v"], [[1.0]])
