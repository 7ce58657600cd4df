"""Which rows of a step's logits are read: for next tokens, and for prompts whose log-probabilities are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import numpy as np
import torch
from torch import Tensor

from mintbook.engine.request import Choice
from mintbook.engine.sampler import choose, not_finite
from mintbook.engine.sequence import Sequence as Running
from mintbook.model.batch import Piece
from mintbook.model.upload import upload

_ROWS_AT_ONCE = 64


class Readout:
    """The rows of one step that are wanted: ``rows``, in the step's packed batch.

    A sequence that is read to its end wants its last row, for the next token. One that asks for ``prompt_logprobs``
    also wants the rows before the tokens of its prompt; it must be read whole, and no token of it twice.
    """

    def __init__(self, planned: Sequence[tuple[Running, Piece]], bounds: Sequence[int]) -> None:
        self._speaking: list[Running] = []
        self._reading: list[tuple[Running, tuple[int, ...]]] = []
        last: list[int] = []
        prompts: list[int] = []
        for (sequence, piece), first_row in zip(planned, bounds, strict=False):
            end = piece.start + len(piece.tokens)
            if end == len(sequence.tokens):
                self._speaking.append(sequence)
                last.append(first_row + len(piece.tokens) - 1)
            request = sequence.generation.request
            if request.sampling.prompt_logprobs:
                targets = request.tokens[piece.start + 1 : end + 1]
                if targets:
                    self._reading.append((sequence, targets))
                    prompts += range(first_row, first_row + len(targets))
        self.rows = [*last, *prompts] or [0]  # the base computes at least one row of logits

    def outcomes(self, logits: Tensor) -> list[tuple[Running, Choice | Exception]]:
        """Return each sequence's next choice, or the error that is its alone, from the logits ``[K, V]`` of ``rows``.

        Log-probabilities of prompts are added to their sequences, in place.
        """
        failed: list[tuple[Running, Exception]] = []
        at = len(self._speaking)
        for sequence, targets in self._reading:
            rows = logits[at : at + len(targets)]
            at += len(targets)
            try:
                sequence.prompt_logprobs += _logprobs(rows, targets, sequence.generation.request.revision)
            except Exception as error:  # noqa: BLE001 — it is this request's alone; the others go on
                failed.append((sequence, error))
        broken = {id(sequence) for sequence, _ in failed}
        choices = choose(logits[: len(self._speaking)], [sequence.sampler for sequence in self._speaking])
        spoken = [pair for pair in zip(self._speaking, choices, strict=True) if id(pair[0]) not in broken]
        return [*failed, *spoken]


def _logprobs(logits: Tensor, targets: Sequence[int], revision: str) -> list[float]:
    """Return log_softmax(logits)[i, targets[i]], in fp32 for a few rows at a time; raise as `choose` says."""
    wanted = upload([np.array(targets)], logits.device)[0][:, None]
    parts = zip(torch.split(logits, _ROWS_AT_ONCE), torch.split(wanted, _ROWS_AT_ONCE), strict=True)
    found = torch.cat([torch.log_softmax(rows.float(), dim=-1).gather(1, which)[:, 0] for rows, which in parts])
    numbers: list[float] = found.tolist()
    if not all(map(isfinite, numbers)):
        raise not_finite(revision)
    return numbers
