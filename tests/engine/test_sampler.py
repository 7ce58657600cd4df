"""Sampling: the cuts of top-k and top-p, seeds, and greedy ties."""

from __future__ import annotations

import pytest
import torch

from mintbook.config import SampleConfig
from mintbook.engine.request import Request
from mintbook.engine.sampler import choose
from mintbook.errors import RunFailed


def ask(**options: object) -> Request:
    return Request(tokens=(1,), sampling=SampleConfig(**options), revision="alice@3", end_ids=frozenset())


LOGITS = torch.log(torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]))


def draws(count: int, **options: object) -> list[int]:
    request = ask(**{"temperature": 1.0, **options})
    generator = torch.Generator().manual_seed(0)
    return [choose(LOGITS, request, generator)[0] for _ in range(count)]


def test_greedy_takes_the_first_of_equals() -> None:
    assert choose(torch.tensor([1.0, 3.0, 3.0]), ask(), torch.Generator()) == (1, None)


@pytest.mark.parametrize(
    ("options", "allowed"),
    [({"top_k": 2}, {0, 1}), ({"top_p": 0.5}, {0}), ({"top_p": 0.71}, {0, 1, 2}), ({"top_k": 3, "top_p": 0.6}, {0, 1})],
)
def test_cuts_keep_exactly_the_likeliest(options: dict[str, float], allowed: set[int]) -> None:
    assert set(draws(300, **options)) == allowed


def test_draws_follow_the_distribution() -> None:
    share = torch.bincount(torch.tensor(draws(4000)), minlength=5) / 4000
    assert torch.allclose(share, LOGITS.exp(), atol=0.03)


def test_temperature_sharpens() -> None:
    assert draws(200, temperature=0.1).count(0) > 190
    assert draws(50, temperature=1e-3).count(0) == 50


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_no_answer(bad: float) -> None:
    with pytest.raises(RunFailed, match="alice@3"):
        choose(torch.tensor([0.0, bad, 1.0]), ask(), torch.Generator())
