"""The choice of the next token."""

from __future__ import annotations

import torch
from torch import Tensor

from mintbook.config import SampleConfig
from mintbook.engine.request import Request
from mintbook.errors import RunFailed


def choose(row: Tensor, request: Request, generator: torch.Generator) -> tuple[int, float | None]:
    """Return the token that follows one row of logits ``[V]`` and, where asked for, its log-probability.

    Temperature 0 takes the largest logit, the first of equals. Otherwise one token is drawn from softmax(logits / T)
    cut to the top k and then to the smallest set of probability top_p (Holtzman et al. 2020), with the request's own
    generator: a draw does not depend on the other rows. The log-probability is that of the whole, unscaled
    distribution. Raises `RunFailed` when a logit is not finite, which no token would be an honest answer to.
    """
    row = row.float()
    config = request.sampling
    if not bool(torch.isfinite(row).all()):
        raise RunFailed(
            f"{request.revision} gives logits that are not finite: its weights are damaged. Go back to an earlier one."
        )
    token = int(row.argmax()) if config.temperature == 0 else _draw(row, config, generator)
    return token, float(torch.log_softmax(row, dim=-1)[token]) if config.logprobs else None


def _draw(row: Tensor, config: SampleConfig, generator: torch.Generator) -> int:
    probabilities, order = torch.softmax((row - row.max()) / config.temperature, dim=-1).sort(
        descending=True, stable=True
    )
    if config.top_k:
        probabilities[config.top_k :] = 0
    if config.top_p < 1:
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities[before >= config.top_p * probabilities.sum()] = 0
    at = torch.multinomial(probabilities.cpu(), 1, generator=generator)
    return int(order[at.to(order.device)])
