"""Numbers as a reader wants them: sizes, durations, counts, digests, and columns that line up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard

Value = str | int | float | bool | None

MISSING = "—"
"""What stands where a value is not known."""

_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_LONG_UNITS = ((86400, "d", 3600, "h", 60), (3600, "h", 60, "min", 1), (60, "min", 1, "s", 1))


def bytes_text(count: float) -> str:
    """Return a size of ``count`` bytes in binary units, three digits.

    >>> bytes_text(123456), bytes_text(1536), bytes_text(999), bytes_text(2**40)
    ('121 KiB', '1.5 KiB', '999 B', '1 TiB')
    """
    size, unit = float(count), 0
    # 1023.6 would be printed as 1,024 of its unit, which is 1 of the next.
    while round(abs(size)) >= 1024 and unit < len(_BYTE_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{number_text(size)} {_BYTE_UNITS[unit]}"


def seconds_text(seconds: float) -> str:
    """Return a duration of ``seconds`` in its two largest units; ``—`` for one that is not finite.

    >>> seconds_text(75.2), seconds_text(0.0123), seconds_text(59.96), seconds_text(90000)
    ('1 min 15 s', '12.3 ms', '1 min 0 s', '1 d 1 h')
    """
    if not math.isfinite(seconds):
        return MISSING
    if seconds < 0:
        return f"-{seconds_text(-seconds)}"
    for unit_s, unit, part_s, part, finer_s in _LONG_UNITS:
        # What the next finer row would round up to a whole unit belongs here: 59.96 s is 1 min 0 s.
        if seconds >= unit_s - finer_s / 2:
            parts = round(seconds / part_s)
            return f"{parts * part_s // unit_s} {unit} {parts * part_s % unit_s // part_s} {part}"
    for per_s, unit in ((1e6, "µs"), (1e3, "ms")):
        if 0 < seconds * per_s < 999.5:
            return f"{number_text(seconds * per_s)} {unit}"
    return f"{seconds:.1f} s" if 0 < seconds < 9.95 else f"{round(seconds)} s"


def number_text(number: float) -> str:
    """Return an integer with thousands separated, any other number with three significant digits.

    >>> number_text(1234567), number_text(3.5512), number_text(0.00002), number_text(16.0), number_text(48213.7)
    ('1,234,567', '3.55', '2e-05', '16', '48,214')
    """
    if isinstance(number, int):
        return f"{number:,}"
    if not math.isfinite(number):
        return _not_finite(number)
    if 999.5 <= abs(number) < 1e15:
        return f"{number:,.0f}"
    return f"{number:.3g}"


def short_digest(digest: str) -> str:
    """Return the first eight digits of a digest, without its algorithm.

    >>> short_digest("sha256:abcdef1234567890")
    'abcdef12'
    """
    return digest.rpartition(":")[2][:8]


def value_text(value: Value) -> str:
    """Return one value as text, on its own.

    >>> value_text(None), value_text(True), value_text(48213), value_text("α/r")
    ('—', 'yes', '48,213', 'α/r')
    """
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else number_text(value)


def is_number(value: Value) -> TypeGuard[float]:
    """Say whether ``value`` is a number to be aligned; a truth value is not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def column_texts(values: Sequence[Value], *, digits: int = 3, keep_small: bool = True) -> list[str]:
    """Return the values of one column as text, its numbers with equal decimals so that they line up on the right.

    The decimals give the largest number ``digits`` digits. Where that would leave a smaller one with no digit at all,
    each number keeps its own three significant digits, unless ``keep_small`` is False.

    >>> column_texts([3.5512, 0.02, None]), column_texts([1.5, 0.00001]), column_texts([1200, 3])
    (['3.55', '0.02', '—'], ['1.5', '1e-05'], ['1,200', '3'])
    """
    alone = [value_text(value) for value in values]
    sizes = [abs(value) for value in values if _is_finite(value) and value]
    if not any(isinstance(value, float) for value in values) or not sizes or max(sizes) >= 1e15:
        return alone
    decimals = min(6, max(0, digits - 1 - math.floor(math.log10(max(sizes)))))
    if keep_small and min(sizes) < 10**-decimals:
        return alone
    numbers = [f"{value:,.{decimals}f}" for value in values if _is_finite(value)]
    while decimals and all(number.endswith("0") for number in numbers):
        decimals -= 1
        numbers = [number[:-1].rstrip(".") for number in numbers]
    lined_up = iter(numbers)
    return [next(lined_up) if _is_finite(value) else text for value, text in zip(values, alone, strict=True)]


def _is_finite(value: Value) -> TypeGuard[float]:
    return is_number(value) and math.isfinite(value)


def _not_finite(number: float) -> str:
    return "nan" if math.isnan(number) else ("∞" if number > 0 else "-∞")
