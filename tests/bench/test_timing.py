"""Interleaving, and ratios within a round."""

from __future__ import annotations

from functools import partial

from mintbook.bench.timing import Timing, cpu_ratio, interleaved, wall_ratio


def test_every_round_takes_every_measure_in_turning_order() -> None:
    taken: list[str] = []

    def take(name: str) -> Timing:
        taken.append(name)
        return Timing(len(taken), 0)

    found = interleaved({name: partial(take, name) for name in "abc"}, 2, lambda _what: None)
    assert "".join(taken) == "abccba"
    assert [timing.wall_s for timing in found["c"]] == [3, 4]


def test_a_disturbed_round_does_not_move_the_ratio() -> None:
    base = [Timing(1, 2), Timing(10, 2), Timing(1, 2)]
    mixed = [Timing(2, 3), Timing(20, 3), Timing(2, 3)]
    assert wall_ratio(mixed, base) == 2
    assert cpu_ratio(mixed, base) == 1.5


def test_a_part_of_what_has_passed() -> None:
    assert Timing(5, 3).since(Timing(1, 1), parts=2) == Timing(2, 1)
    assert Timing(2, 1).times(3) == Timing(6, 3)
