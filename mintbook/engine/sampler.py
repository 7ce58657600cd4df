"""The choice of the next token: greedy rows of a step all at once, the others each by themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from mintbook.engine.request import Choice, Request
from mintbook.errors import RunFailed
from mintbook.model.upload import upload

_LUCK_BITS = 31
P = ParamSpec("P")
T = TypeVar("T")


class Sampler:
    """How one request chooses: its options, its own generator, and the tokens it has had.

    All arithmetic is over the request's own row ``[V]``, so no bit of it depends on what else is in the step.
    """

    __slots__ = ("_generator", "_said", "config", "revision")

    def __init__(self, request: Request, device: torch.device) -> None:
        self.config = request.sampling
        self.revision = request.revision
        self._generator = torch.Generator(device).manual_seed(self.config.seed)
        self._said = dict.fromkeys(request.tokens, 0)
        """How often the answer has each token that prompt or answer has."""

    @property
    def plain(self) -> bool:
        """Whether it takes the likeliest token and says no more about it."""
        config = self.config
        return not (config.penalizes or config.temperature or config.logprobs or config.top_logprobs)

    def draw(self, row: Tensor, likeliest: Tensor) -> Tensor:
        """Return the choice from a row of finite logits ``[V]``, of which ``likeliest []`` is the largest, for `take`.

        It is fp64 ``[1]``, or with log-probabilities ``[2 + 2k]``, and stays on the row's device.
        """
        config = self.config
        token = likeliest
        if config.penalizes or config.temperature:
            changed = self._penalized(row)
            token = self._draw(changed) if config.temperature else changed.max(dim=-1).indices
        parts = [token[None]]
        if config.logprobs or config.top_logprobs:
            logprobs = torch.log_softmax(row.float(), dim=-1)
            top = _likeliest(logprobs, config.top_logprobs) if config.top_logprobs else parts[0][:0]
            parts += [logprobs.index_select(0, parts[0]), top, logprobs.index_select(0, top)]
        return torch.cat([part.double() for part in parts])

    def take(self, drawn: Sequence[float]) -> Choice:
        """Return the choice that `draw` has made, once its numbers are read; the next draw knows of it."""
        config, token = self.config, int(drawn[0])
        if config.penalizes:
            self._said[token] = self._said.get(token, 0) + 1
        count = (len(drawn) - 2) // 2
        tops = zip(map(int, drawn[2 : 2 + count]), drawn[2 + count :], strict=True) if count > 0 else ()
        return Choice(token, drawn[1] if config.logprobs else None, tuple(tops))

    def _penalized(self, row: Tensor) -> Tensor:
        """Return a copy of the row in fp32 with the penalties of `SampleConfig` taken off."""
        row = row.to(torch.float32, copy=True)
        config = self.config
        if config.penalizes:
            said = [np.fromiter(numbers, np.int64, len(self._said)) for numbers in (self._said, self._said.values())]
            tokens, times = upload(said, row.device)
            had = row[tokens]
            had = torch.where(had > 0, had / config.repetition_penalty, had * config.repetition_penalty)
            row[tokens] = had - config.presence_penalty * (times > 0) - config.frequency_penalty * times.float()
        return row

    def _draw(self, row: Tensor) -> Tensor:
        """Return one token ``[]`` drawn from softmax(row / T), cut as `SampleConfig` says; changes ``row``.

        With e_i exponentially distributed, argmax p_i / e_i is token i with probability p_i. Token i has its e_i
        whatever its rank, so that a difference in rounding changes a draw only where two tokens are almost level.
        """
        weights = row.sub(row.max()).div_(self.config.temperature).exp_()
        luck = torch.empty(row.shape, dtype=torch.int32, device=row.device).random_(generator=self._generator)
        kept = self._kept(row, weights)
        if kept is not None:
            weights, luck = weights[kept], luck[kept]
        # Never 0, as a float from rand() may be: a token would win that has no probability to speak of.
        uniform = luck.float().add_(0.5).mul_(2.0**-_LUCK_BITS)
        at = weights.div_(uniform.neg_().log1p_().neg_()).max(dim=-1).indices
        return at if kept is None else kept.index_select(0, at[None])[0]

    def _kept(self, row: Tensor, weights: Tensor) -> Tensor | None:
        """Return the tokens that top-k, top-p and min-p leave; ``None`` for all of them.

        ``weights [V]`` are probabilities over the largest one. No cut sorts the whole row.
        """
        config = self.config
        kept = _likeliest(row, config.top_k) if 0 < config.top_k < len(row) else None
        if config.top_p < 1:
            mass = (weights if kept is None else weights[kept]).sum(dtype=torch.float64)
            if kept is None:
                # Tokens below this level have, all together, less than the share that is cut.
                candidates = (weights >= (1 - config.top_p) * mass / len(row)).nonzero()[:, 0]
                kept = candidates[row[candidates].sort(descending=True, stable=True).indices]
            likely = weights[kept].double()
            kept = kept[likely.cumsum(dim=-1) - likely < config.top_p * mass]
        if config.min_p:
            of = weights if kept is None else weights[kept]
            strong = (of >= config.min_p).nonzero()[:, 0]
            kept = strong if kept is None else kept[strong]
        return kept


def choose(logits: Tensor, samplers: Sequence[Sampler]) -> list[Choice | Exception]:
    """Return what every sampler chooses from its row of ``logits [B, V]``, or the error that is this request's alone.

    At temperature 0 it is the largest logit, the first of equals. The error is `RunFailed` for a row with a logit that
    is not finite, which no token would be an honest answer to.
    """
    if not samplers:
        return []
    largest, first = logits.max(dim=-1)
    # A NaN is the maximum of its row, and so is +inf; only −inf needs the second look.
    sound = largest.isfinite() & logits.amin(dim=-1).isfinite()
    drawn = [
        None if sampler.plain else _attempt(sampler.draw, row, likeliest)
        for row, sampler, likeliest in zip(logits, samplers, first, strict=True)
    ]
    # On a GPU this is where the host waits for the step, once for all rows.
    numbers = torch.cat([first.double(), sound.double(), *(d for d in drawn if isinstance(d, Tensor))]).tolist()
    found: list[Choice | Exception] = []
    at = 2 * len(samplers)
    for i, (sampler, own) in enumerate(zip(samplers, drawn, strict=True)):
        choice: Sequence[float] = numbers[i : i + 1]
        if isinstance(own, Tensor):
            choice, at = numbers[at : at + len(own)], at + len(own)
        if not numbers[len(samplers) + i]:
            found.append(not_finite(sampler.revision))
        else:
            found.append(own if isinstance(own, Exception) else _attempt(sampler.take, choice))
    return found


def _attempt(work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T | Exception:
    try:
        return work(*args, **options)
    except Exception as error:  # noqa: BLE001 — it is this request's alone; the others go on
        return error


def not_finite(revision: str) -> RunFailed:
    """Return the error for a revision whose logits are not finite."""
    return RunFailed(
        f"{revision} gives logits that are not finite: its weights are damaged. Go back to an earlier one."
    )


def _likeliest(values: Tensor, count: int) -> Tensor:
    """Return where the ``count`` largest of ``values [V]`` are, the largest first, of equals the first."""
    count = min(count, len(values))
    edge = values.topk(count).values[-1]
    candidates = (values >= edge).nonzero()[:, 0]
    return candidates[values[candidates].sort(descending=True, stable=True).indices[:count]]
