from __future__ import annotations

import math

import torch

from mintbook.store.peft_alpha import alphas_of


def _back(rank: int, scale: float) -> float:
    rooted, (alpha,) = alphas_of([rank], [scale])
    return alpha / math.sqrt(rank) if rooted else alpha / rank


def test_the_alpha_that_a_person_wrote_comes_back() -> None:
    for rank in range(1, 257):
        assert alphas_of([rank], [32 / rank]) == (False, [32.0])
        assert _back(rank, 32 / math.sqrt(rank)) == 32 / math.sqrt(rank)
    assert alphas_of([12, 3], [32 / math.sqrt(12), 5 / math.sqrt(3)]) == (True, [32.0, 5.0])


def test_one_rule_serves_all_modules() -> None:
    ranks, scales = [3, 16, 7], [5 / math.sqrt(3), 2.0, 0.1]
    rooted, alphas = alphas_of(ranks, scales)
    for rank, scale, alpha in zip(ranks, scales, alphas, strict=True):
        assert abs(alpha / (math.sqrt(rank) if rooted else rank) - scale) <= scale * 2**-52


def test_any_scale_is_met_to_the_last_place_and_most_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = 0
    for scale in torch.rand(2000, generator=generator, dtype=torch.float64).mul(8).tolist():
        rank = int(torch.randint(1, 257, (1,), generator=generator))
        back = _back(rank, scale)
        exact += back == scale
        assert abs(back - scale) <= scale * 2**-52
    assert 1600 < exact < 2000
