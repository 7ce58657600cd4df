"""How surprised a model is by text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat

from mintbook.errors import DataError


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Surprise over paragraphs: ``nll`` is −Σ ln p over their ``tokens``, in nats; one entry per paragraph."""

    tokens: tuple[int, ...]
    nll: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean −ln p per token over all paragraphs together, in nats."""
        return math.fsum(self.nll) / sum(self.tokens)

    @property
    def value(self) -> float:
        """The perplexity exp(mean −ln p); infinite where it is beyond a float."""
        try:
            return math.exp(self.mean)
        except OverflowError:
            return math.inf

    def to_dict(self) -> dict[str, Any]:
        """Return value, mean and paragraphs as plain data; what is not finite becomes ``None``."""
        mean, value, *nll = (number if math.isfinite(number) else None for number in (self.mean, self.value, *self.nll))
        return {"perplexity": value, "mean_nll": mean, "tokens": list(self.tokens), "nll": nll}


def perplexity(logprobs: Sequence[Iterable[SupportsFloat]]) -> Perplexity:
    """Return the perplexity of paragraphs from the log-probabilities of their tokens, each given those before it.

    A paragraph starts without context, so that its first token has no log-probability and is not counted. Every token
    weighs the same, in a short paragraph and in a long one. Raises `DataError` when there is none, or one is NaN.

    >>> round(perplexity([[-1.0, -3.0], [-2.0]]).value, 3) == round(math.exp(2), 3)
    True
    """
    paragraphs = [[float(logprob) for logprob in paragraph] for paragraph in logprobs]
    if not any(paragraphs):
        raise DataError("There is no token to measure perplexity on. Give paragraphs of at least two tokens.")
    if any(math.isnan(logprob) for paragraph in paragraphs for logprob in paragraph):
        raise DataError(
            "A log-probability is NaN: the model's weights or its forward are broken, so nothing is measured."
        )
    return Perplexity(tuple(map(len, paragraphs)), tuple(-math.fsum(paragraph) for paragraph in paragraphs))
