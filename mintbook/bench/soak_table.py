"""What a soak asks: a fixed table of prompts, each with its own way to sample, and who asks which."""

from __future__ import annotations

import random
from itertools import accumulate
from typing import NamedTuple

from mintbook.config import SampleConfig

PROMPTS = 24
SHARING = 4
"""Prompts of the table that begin alike, but for the first of them."""
HEAD = 65
"""Tokens that they begin with: a batch-invariant engine shares whole chunks of 64."""
EACH = 2
"""Prompts of the table that one adapter is asked."""


class Line(NamedTuple):
    """A prompt of the table, and how its answer is sampled."""

    tokens: tuple[int, ...]
    sampling: SampleConfig


class Key(NamedTuple):
    """Which adapter is asked which line of the table."""

    adapter: int
    line: int


def prompt_table(vocabulary: int) -> tuple[Line, ...]:
    """Return prompts of 5 to 92 tokens: three of every four begin alike, and a third are drawn with a seed."""
    dice = random.Random(24)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(dice.randrange(5, vocabulary) for _ in range(count))

    heads = [tokens(HEAD) for _ in range(PROMPTS // SHARING)]
    lines = []
    for number in range(PROMPTS):
        whole = heads[number // SHARING][: HEAD if number % SHARING else 5] + tokens(dice.randrange(28))
        draws = number % 3 == 0
        sampling = SampleConfig(
            max_tokens=dice.randrange(3, 18),
            temperature=0.8 if draws else 0.0,
            top_p=0.9 if draws else 1.0,
            seed=number if draws else 0,
            logprobs=number % 2 == 0,
        )
        lines.append(Line(whole, sampling))
    return tuple(lines)


class Zipf:
    """Draws adapters, number n with a share proportional to 1 / (n + 1), and one of the lines that each is asked."""

    def __init__(self, count: int, dice: random.Random) -> None:
        self._numbers = range(count)
        self._weights = list(accumulate(1 / (n + 1) for n in self._numbers))
        self._dice = dice

    def draw(self) -> Key:
        """Return the next one."""
        (adapter,) = self._dice.choices(self._numbers, cum_weights=self._weights)
        return Key(adapter, adapter * SHARING % PROMPTS + (adapter + self._dice.randrange(EACH)) % SHARING)
