"""Sampling: every formula against a plain oracle, draws that follow the distribution, and rows that stay alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from mintbook.config import SampleConfig
from mintbook.engine.request import Choice, Request
from mintbook.engine.sampler import Sampler, choose
from mintbook.errors import RunFailed

CPU = torch.device("cpu")
SHARES = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05])
LOGITS = torch.log(SHARES)
CHI_SQUARE_999 = {3: 16.27, 4: 18.47, 19: 43.82}
"""What chi-square passes once in a thousand times, by degrees of freedom."""


def sampler(prompt: Sequence[int] = (), **options: object) -> Sampler:
    config = SampleConfig(**options)
    return Sampler(Request(tokens=tuple(prompt), sampling=config, revision="alice@3", end_ids=frozenset()), CPU)


def choice(logits: Tensor, of: Sampler) -> Choice:
    (found,) = choose(logits[None], [of])
    if isinstance(found, Exception):
        raise found
    return found


def draws(logits: Tensor, count: int, **options: object) -> list[int]:
    one = sampler(**{"temperature": 1.0, **options})
    return [choice(logits, one).token for _ in range(count)]


def chi_square(tokens: Sequence[int], shares: Tensor) -> float:
    counts = torch.bincount(torch.tensor(tokens), minlength=len(shares)).double()
    expected = shares.double() / shares.sum() * len(tokens)
    assert counts[expected == 0].sum() == 0
    return float(((counts - expected) ** 2 / expected)[expected > 0].sum())


def oracle_cut(logits: Tensor, config: SampleConfig) -> set[int]:
    """The tokens that top-k, top-p and min-p leave, by one whole stable sort in double precision."""
    p, order = torch.softmax(logits.double() / config.temperature, -1).sort(descending=True, stable=True)
    p, order = p[: config.top_k or len(p)], order[: config.top_k or len(p)]
    before = p.cumsum(-1) - p
    keep = ((before < config.top_p * p.sum()) | (config.top_p == 1)) & (p >= config.min_p * p[0])
    return set(order[keep].tolist())


def oracle_penalties(logits: Tensor, prompt: Sequence[int], answer: Sequence[int], config: SampleConfig) -> Tensor:
    changed = logits.double().clone()
    for token in {*prompt, *answer}:
        r = config.repetition_penalty
        changed[token] = changed[token] / r if changed[token] > 0 else changed[token] * r
    for token, times in Counter(answer).items():
        changed[token] -= config.presence_penalty + times * config.frequency_penalty
    return changed


def test_greedy_takes_the_first_of_equals() -> None:
    assert choice(torch.tensor([1.0, 3.0, 3.0]), sampler()) == Choice(1)
    ties = torch.randint(0, 40, (16, 3000), generator=torch.Generator().manual_seed(0)).bfloat16()
    found = choose(ties, [sampler() for _ in ties])
    assert found == [Choice(int((row == row.max()).nonzero()[0])) for row in ties]


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.5}, {0}),
        ({"top_p": 0.71}, {0, 1, 2}),
        ({"min_p": 0.21}, {0, 1, 2}),
        ({"min_p": 1}, {0}),
        ({"top_k": 3, "top_p": 0.6}, {0, 1}),
        ({"top_k": 4, "min_p": 0.25}, {0, 1, 2}),
        ({"top_p": 0.96, "min_p": 0.15}, {0, 1, 2, 3}),
    ],
)
def test_cuts_keep_exactly_the_likeliest(options: dict[str, float], allowed: set[int]) -> None:
    assert set(draws(LOGITS, 300, **options)) == allowed


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 7, 5000])
@pytest.mark.parametrize("top_p", [1e-6, 0.5, 0.95, 0.9999, 1.0])
@pytest.mark.parametrize("min_p", [0.0, 0.02])
def test_a_cut_without_a_whole_sort_is_that_of_a_whole_sort(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    config = SampleConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    for seed in range(4):
        row = torch.randn(4096, generator=torch.Generator().manual_seed(seed)) * 3
        if seed % 2:
            row = (row * 4).round() / 4  # many equals
        weights = ((row - row.max()) / temperature).exp()
        kept = sampler(**config.to_dict())._kept(row, weights)
        found = set(range(4096)) if kept is None else set(kept.tolist())
        assert len(found ^ oracle_cut(row, config)) <= (1 if 0 < top_p < 1 and top_p > 0.99 else 0)


def test_draws_follow_the_distribution() -> None:
    assert chi_square(draws(LOGITS, 2500), SHARES) < CHI_SQUARE_999[4]
    assert chi_square(draws(LOGITS, 2500, temperature=2.0, seed=1), SHARES.sqrt()) < CHI_SQUARE_999[4]
    cut = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.0])
    assert chi_square(draws(LOGITS, 2500, top_k=4, seed=2), cut) < CHI_SQUARE_999[3]
    assert chi_square(draws(LOGITS, 2500, min_p=0.15, seed=3), cut) < CHI_SQUARE_999[3]
    assert chi_square(draws(LOGITS, 2500, top_p=0.94, seed=4), cut) < CHI_SQUARE_999[3]


def test_neighbouring_seeds_and_steps_are_independent() -> None:
    first = [draws(torch.zeros(20), 2, seed=seed) for seed in range(3000)]
    pairs = list(zip(first[::2], first[1::2], strict=True))
    assert chi_square([a for a, _ in first], torch.ones(20)) < CHI_SQUARE_999[19]
    assert chi_square([(a + b) % 20 for a, b in first], torch.ones(20)) < CHI_SQUARE_999[19]
    assert chi_square([(a[0] - b[0]) % 20 for a, b in pairs], torch.ones(20)) < CHI_SQUARE_999[19]


def test_temperature_sharpens() -> None:
    assert draws(LOGITS, 200, temperature=0.1).count(0) > 190
    assert draws(LOGITS, 50, temperature=1e-3).count(0) == 50
    assert set(draws(torch.tensor([0.0, 200.0, -3e38]), 20)) == {1}


def test_a_tokens_luck_is_its_own_whatever_is_cut() -> None:
    row = torch.randn(500, generator=torch.Generator().manual_seed(0))
    whole, cut = draws(row, 200, seed=9), draws(row, 200, seed=9, top_k=100)
    allowed = set(row.topk(100).indices.tolist())
    assert [a for a in whole if a in allowed] == [b for a, b in zip(whole, cut, strict=True) if a in allowed]
    assert whole != cut


OPTIONS: tuple[dict[str, object], ...] = (
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 40, "logprobs": True},
    {"temperature": 1.3, "top_p": 0.9, "repetition_penalty": 1.2, "top_logprobs": 3},
    {"temperature": 0.9, "min_p": 0.05, "presence_penalty": 0.5, "logprobs": True},
    {"logprobs": True},
    {"frequency_penalty": 1.0, "logprobs": True},
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_alone_is_bit_for_bit_that_row_in_a_batch(dtype: torch.dtype) -> None:
    options = [{**OPTIONS[i % len(OPTIONS)], "seed": i} for i in range(32)]
    together = [sampler((i, 5), **o) for i, o in enumerate(options)]
    alone = [sampler((i, 5), **o) for i, o in enumerate(options)]
    for step in range(6):
        logits = (torch.randn(32, 1234, generator=torch.Generator().manual_seed(step)) * 3).to(dtype)
        order = torch.randperm(32, generator=torch.Generator().manual_seed(step)).tolist()
        found = dict(zip(order, choose(logits[order], [together[i] for i in order]), strict=True))
        assert [found[i] for i in range(32)] == [choice(logits[i], alone[i]) for i in range(32)]


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.5},
        {"repetition_penalty": 0.5},
        {"presence_penalty": 1.1},
        {"frequency_penalty": 0.7},
        {"repetition_penalty": 1.3, "presence_penalty": -0.4, "frequency_penalty": 0.9},
    ],
)
def test_penalties_are_the_formulas(options: dict[str, float]) -> None:
    prompt, answer = [3, 3, 8], []
    one = sampler(prompt, **options)
    logits = torch.randn(30, generator=torch.Generator().manual_seed(4))
    logits[3], logits[8] = 2.5, -0.1
    for _ in range(25):
        expected = oracle_penalties(logits, prompt, answer, one.config)
        torch.testing.assert_close(one._penalized(logits).double(), expected, rtol=1e-6, atol=1e-6)
        answer.append(choice(logits, one).token)
        assert answer[-1] == int(expected.argmax())
    assert len(set(answer)) > 1 or options.get("repetition_penalty") == 0.5


def test_penalties_change_draws_and_not_what_is_said_of_them() -> None:
    logits = torch.tensor([4.0, 3.9, 0.0])
    one = sampler(presence_penalty=1.0, logprobs=True)
    found = [choice(logits, one) for _ in range(3)]
    assert [c.token for c in found] == [0, 1, 0]
    assert [c.logprob for c in found] == torch.log_softmax(logits, -1)[[0, 1, 0]].tolist()
    assert logits.tolist() == pytest.approx([4.0, 3.9, 0.0]), "the step's logits are not the sampler's to change"


def test_the_likeliest_are_told_with_their_logprobs() -> None:
    logits = torch.tensor([1.0, 3.0, 3.0, -1.0, 2.0])
    logprobs = torch.log_softmax(logits, -1).tolist()
    found = choice(logits, sampler(temperature=1.0, seed=1, top_logprobs=3, repetition_penalty=2.0))
    assert found.top == tuple((token, logprobs[token]) for token in (1, 2, 4))
    assert found.logprob is None
    assert choice(logits, sampler(logprobs=True)) == Choice(1, logprobs[1])
    assert len(choice(logits, sampler(top_logprobs=20)).top) == 5


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_that_are_not_finite_fail_their_own_request(bad: float, dtype: torch.dtype) -> None:
    logits = torch.zeros(3, 50, dtype=dtype)
    logits[1, 20] = bad
    good, broken, other = choose(logits, [sampler(), sampler(), sampler(temperature=1.0)])
    assert good == Choice(0)
    assert isinstance(other, Choice)
    assert isinstance(broken, RunFailed)
    assert "alice@3" in str(broken)
