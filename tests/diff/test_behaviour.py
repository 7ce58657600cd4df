from __future__ import annotations

import json
import math

import pytest
import torch

from mintbook.diff.behaviour import BehaviourDiff, Probe, Reading, behaviour_diff
from mintbook.errors import DataError, ShapeError

WORDS = ["a", "b", "c"]
# Rows of probabilities, so that the expected numbers can be worked out by hand.
LEFT = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.7, 0.1]]).log()
RIGHT = torch.tensor([[0.25, 0.5, 0.25], [0.2, 0.7, 0.1]]).log()


def reading(left: torch.Tensor = LEFT, right: torch.Tensor = RIGHT, tokens: tuple[int, ...] = (0, 1)) -> Reading:
    return Reading(Probe("What?", "ab"), tokens, left, right, "ab", "bb")


def test_shifts_divergence_and_flips_are_as_worked_out_by_hand() -> None:
    # Adding a number to a row of logits changes no probability.
    (probe,) = behaviour_diff([reading(LEFT + 3.0, RIGHT - 50.0)], WORDS.__getitem__).probes
    first, second = probe.tokens
    assert (first.token, first.top_a, first.top_b, first.flipped) == ("a", "a", "b", True)
    assert first.logprob_a == pytest.approx(math.log(0.5), abs=1e-5)
    assert first.shift == pytest.approx(math.log(0.25 / 0.5), abs=1e-5)
    assert first.kl == pytest.approx(0.5 * math.log(2) + 0.25 * math.log(0.5), abs=1e-5)
    assert (second.token, second.flipped) == ("b", False)
    assert second.kl == pytest.approx(0, abs=1e-5)
    assert probe.flips == (0,)
    assert probe.kl == pytest.approx(first.kl / 2, abs=1e-5)
    assert probe.shift == pytest.approx(math.log(0.5), abs=1e-5)


def test_divergence_has_a_direction() -> None:
    left = torch.tensor([[0.9, 0.05, 0.05]]).log()
    right = torch.full((1, 3), 1 / 3).log()
    there = behaviour_diff([reading(left, right, (2,))], WORDS.__getitem__).kl
    back = behaviour_diff([reading(right, left, (2,))], WORDS.__getitem__).kl
    assert there == pytest.approx(float(torch.nn.functional.kl_div(right, left, log_target=True, reduction="sum")))
    assert there != pytest.approx(back)


def test_equal_sides_differ_by_nothing_and_never_by_less() -> None:
    logits, noise = torch.randn(2, 40, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = behaviour_diff([Reading(Probe("x"), [3] * 40, logits, logits, "y", "y")], str)
    assert (found.kl, found.flips, found.changed, found.positions) == (0, 0, 0, 40)
    near = behaviour_diff([Reading(Probe("x"), [3] * 40, logits, logits + 1e-10 * noise, "y", "y")], str)
    assert all(0 <= token.kl < 1e-15 for token in near.probes[0].tokens)


def test_a_token_that_the_left_excludes_adds_nothing_and_one_that_the_right_excludes_is_infinite() -> None:
    some, other = torch.tensor([[0.0, 0.0, -math.inf]]), torch.tensor([[0.0, 0.0, 0.0]])
    assert behaviour_diff([reading(some, other, (0,))], WORDS.__getitem__).kl == pytest.approx(math.log(1.5))
    assert behaviour_diff([reading(other, some, (0,))], WORDS.__getitem__).kl == math.inf
    assert behaviour_diff([reading(some, some, (0,))], WORDS.__getitem__).kl == 0


def test_totals_frame_and_plain_data() -> None:
    found = behaviour_diff([reading(), reading(LEFT, LEFT)], WORDS.__getitem__)
    assert (found.flips, found.positions, found.changed) == (1, 4, 2)
    assert found.kl == pytest.approx(found.probes[0].tokens[0].kl / 4)
    frame = found.frame()
    assert frame.height == 4
    assert frame["probe"].to_list() == [0, 0, 1, 1]
    assert frame["flipped"].to_list() == [True, False, False, False]
    assert frame["shift"][0] == pytest.approx(-math.log(2))
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["probes"][0]["tokens"][0]["top_b"] == "b"
    assert data["probes"][0]["probe"] == {"prompt": "What?", "reference": "ab"}
    assert data["probes"][0]["flips"] == [0]
    assert BehaviourDiff(()).kl is None
    assert BehaviourDiff(()).frame().schema == frame.schema


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match=r"'What\?' has no tokens"):
        reading(LEFT[:0], RIGHT[:0], ())
    for left, right in ((LEFT[:1], RIGHT[:1]), (LEFT, RIGHT[:, :2]), (LEFT[0], RIGHT[0])):
        with pytest.raises(ShapeError, match="has 2 tokens and logits"):
            reading(left, right)
