"""What differs between two adapters in what they say, measured on probe prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl
import torch
from torch import Tensor

from mintbook.errors import DataError, ShapeError

_SCHEMA = {
    "probe": pl.Int64,
    "prompt": pl.String,
    "position": pl.Int64,
    "token": pl.String,
    "logprob_a": pl.Float64,
    "logprob_b": pl.Float64,
    "shift": pl.Float64,
    "kl": pl.Float64,
    "top_a": pl.String,
    "top_b": pl.String,
    "flipped": pl.Boolean,
}


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt on which two sides are compared; both read ``reference``, or side a's own answer when it is ``None``."""

    prompt: str
    reference: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What both sides made of one probe.

    Row k of ``logits_a`` and ``logits_b`` ``[K, V]`` predicts ``tokens[k]`` of the reference; ``text_a`` and ``text_b``
    are what each side answers by itself. Raises `DataError` without tokens, and `ShapeError` for other shapes.
    """

    probe: Probe
    tokens: Sequence[int]
    logits_a: Tensor
    logits_b: Tensor
    text_a: str
    text_b: str

    def __post_init__(self) -> None:
        if not self.tokens:
            raise DataError(
                f"The reference of the probe {self.probe.prompt!r} has no tokens. Give it an answer to follow."
            )
        shapes = [tuple(logits.shape) for logits in (self.logits_a, self.logits_b)]
        if shapes[0] != shapes[1] or len(shapes[0]) != 2 or shapes[0][0] != len(self.tokens):
            raise ShapeError(
                f"The probe {self.probe.prompt!r} has {len(self.tokens)} tokens and logits {shapes[0]} and "
                f"{shapes[1]}; both must be (tokens, vocabulary)."
            )


@dataclass(frozen=True, slots=True)
class TokenShift:
    """One position: log-probabilities of the reference's token, KL(a ‖ b) in nats, the most likely token of each."""

    token: str
    logprob_a: float
    logprob_b: float
    kl: float
    top_a: str
    top_b: str
    flipped: bool

    @property
    def shift(self) -> float:
        """Ln p_b − ln p_a of the reference token, in nats."""
        return self.logprob_b - self.logprob_a


@dataclass(frozen=True, slots=True)
class ProbeDiff:
    """One probe: the shifts along its reference, and the two answers."""

    probe: Probe
    tokens: tuple[TokenShift, ...]
    text_a: str
    text_b: str

    @property
    def kl(self) -> float:
        """Mean KL(a ‖ b) over the positions, in nats."""
        return math.fsum(token.kl for token in self.tokens) / len(self.tokens)

    @property
    def shift(self) -> float:
        """Σ(ln p_b − ln p_a) over the reference: how much likelier b finds it as a whole, in nats."""
        return math.fsum(token.shift for token in self.tokens)

    @property
    def flips(self) -> tuple[int, ...]:
        """Positions where the most likely token is another one."""
        return tuple(at for at, token in enumerate(self.tokens) if token.flipped)


@dataclass(frozen=True, slots=True)
class BehaviourDiff:
    """All probes of a comparison."""

    probes: tuple[ProbeDiff, ...]

    @property
    def positions(self) -> int:
        """Positions compared, over all probes."""
        return sum(len(probe.tokens) for probe in self.probes)

    @property
    def kl(self) -> float | None:
        """Mean KL(a ‖ b) over all positions, in nats; ``None`` without probes."""
        total = math.fsum(token.kl for probe in self.probes for token in probe.tokens)
        return total / self.positions if self.positions else None

    @property
    def flips(self) -> int:
        """Positions where the most likely token is another one."""
        return sum(len(probe.flips) for probe in self.probes)

    @property
    def changed(self) -> int:
        """Probes that the two sides answer with different texts."""
        return sum(probe.text_a != probe.text_b for probe in self.probes)

    def to_dict(self) -> dict[str, Any]:
        """Return totals, probes and positions as plain data."""
        totals = {name: getattr(self, name) for name in ("kl", "flips", "positions", "changed")}
        probes = [{**asdict(p), "kl": p.kl, "shift": p.shift, "flips": list(p.flips)} for p in self.probes]
        return {**totals, "probes": probes}

    def frame(self) -> pl.DataFrame:
        """Return a row per position of every reference; log-probabilities, ``shift`` and ``kl`` in nats."""
        rows = [
            {"probe": number, "prompt": p.probe.prompt, "position": at, "shift": token.shift, **asdict(token)}
            for number, p in enumerate(self.probes)
            for at, token in enumerate(p.tokens)
        ]
        return pl.DataFrame(rows, schema=_SCHEMA)


def behaviour_diff(readings: Sequence[Reading], decode: Callable[[int], str]) -> BehaviourDiff:
    """Compare two sides probe by probe; ``decode`` gives the text of one token."""
    return BehaviourDiff(tuple(_probe_diff(reading, decode) for reading in readings))


def _probe_diff(reading: Reading, decode: Callable[[int], str]) -> ProbeDiff:
    a, b = (torch.log_softmax(logits.double(), dim=-1) for logits in (reading.logits_a, reading.logits_b))
    # A token that a excludes adds nothing, though 0 · (−∞ − ln p) has no value.
    terms = torch.where(a > -math.inf, a.exp() * (a - b), 0.0)
    # Rounding can put the KL of equal rows just below zero.
    divergence = terms.sum(-1).clamp_min(0.0).tolist()
    picked = torch.tensor(list(reading.tokens), device=a.device)[:, None]
    said_a, said_b = (side.gather(1, picked)[:, 0].tolist() for side in (a, b))
    tops_a, tops_b = (side.argmax(-1).tolist() for side in (a, b))
    tokens = tuple(
        TokenShift(decode(token), la, lb, kl, decode(top_a), decode(top_b), flipped=top_a != top_b)
        for token, la, lb, kl, top_a, top_b in zip(
            reading.tokens, said_a, said_b, divergence, tops_a, tops_b, strict=True
        )
    )
    return ProbeDiff(reading.probe, tokens, reading.text_a, reading.text_b)
