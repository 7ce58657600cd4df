"""The choice of the next token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mintbook.config import SampleConfig


def choose(
    logits: Tensor, configs: Sequence[SampleConfig], generators: Sequence[torch.Generator]
) -> list[tuple[int, float | None]]:
    """Return for every row of ``logits [S, V]`` a token and, where asked for, its log-probability.

    Temperature 0 takes the largest logit, the first of equals. Otherwise one token is drawn from softmax(logits / T)
    cut to the top k and then to the smallest set of probability top_p (Holtzman et al. 2020), with the row's own
    generator: a draw does not depend on the other rows. The log-probability is that of the whole, unscaled
    distribution.
    """
    greedy = logits.argmax(dim=-1).tolist()
    chosen = []
    for row, config, generator, best in zip(logits, configs, generators, greedy, strict=True):
        token = best if config.temperature == 0 else _draw(row.float(), config, generator)
        logprob = float(torch.log_softmax(row.float(), dim=-1)[token]) if config.logprobs else None
        chosen.append((token, logprob))
    return chosen


def _draw(row: Tensor, config: SampleConfig, generator: torch.Generator) -> int:
    probabilities, order = torch.softmax(row / config.temperature, dim=-1).sort(descending=True, stable=True)
    if config.top_k:
        probabilities[config.top_k :] = 0
    if config.top_p < 1:
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities[before >= config.top_p * probabilities.sum()] = 0
    at = torch.multinomial(probabilities.cpu(), 1, generator=generator)
    return int(order[at.to(order.device)])
