"""Numbers read well at every size, and round into the right unit."""

from __future__ import annotations

import math

import pytest

from mintbook.display.quantity import bytes_text, column_texts, number_text, seconds_text, short_digest, value_text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1 KiB"),
        (123456, "121 KiB"),
        (1024**2 - 1, "1 MiB"),
        (3 * 1024**6, "3,072 PiB"),
    ],
)
def test_bytes(count: int, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (2e-6, "2 µs"),
        (0.0123, "12.3 ms"),
        (0.9999, "1.0 s"),
        (3.44, "3.4 s"),
        (9.97, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (75.2, "1 min 15 s"),
        (3570, "59 min 30 s"),
        (3599.7, "1 h 0 min"),
        (86399, "1 d 0 h"),
        (200_000, "2 d 8 h"),
        (-75.2, "-1 min 15 s"),
        (math.nan, "—"),
    ],
)
def test_seconds(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1234567, "1,234,567"),
        (3.5512, "3.55"),
        (999.6, "1,000"),
        (1e20, "1e+20"),
        (-0.5, "-0.5"),
        (math.nan, "nan"),
        (-math.inf, "-∞"),
    ],
)
def test_numbers(number: float, text: str) -> None:
    assert number_text(number) == text


def test_values() -> None:
    assert [value_text(value) for value in (None, True, False, "x", 7)] == ["—", "yes", "no", "x", "7"]
    assert short_digest("sha256:0123456789abcdef") == short_digest("0123456789abcdef") == "01234567"


def test_a_column_has_equal_decimals_and_no_more_than_needed() -> None:
    assert column_texts([3.5512, 0.02, None, math.nan]) == ["3.55", "0.02", "—", "nan"]
    assert column_texts([16.0, 8, 0.0]) == ["16", "8", "0"]
    assert column_texts([0.31, 0.6]) == ["0.31", "0.60"]
    assert column_texts([123456.7, 1234.5]) == ["123,457", "1,234"]
    assert column_texts(["a", 1.25, True]) == ["a", "1.25", "yes"]


def test_a_small_number_in_a_column_is_not_rounded_away_unless_asked() -> None:
    assert column_texts([1.5, 0.00001]) == ["1.5", "1e-05"]
    assert column_texts([1.55, 0.00001], digits=2, keep_small=False) == ["1.6", "0.0"]
