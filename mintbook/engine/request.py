"""What is asked of the engine, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mintbook.config import SampleConfig

StopReason = Literal["end", "stop", "length", "cancelled"]
Ranked = tuple[tuple[int, float], ...]
"""Tokens with their log-probabilities, the likeliest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt and how to continue it.

    ``revision`` and ``digest`` are what the answer will say it came from; ``end_ids`` are tokens that end an answer.
    """

    tokens: tuple[int, ...]
    sampling: SampleConfig
    revision: str
    end_ids: frozenset[int]
    digest: str = ""
    cache_key: str = ""
    """What computes the keys and values, by content: base and adapter digests. Prompts of equal keys that begin alike
    share what was read of them; ``""`` shares nothing, as for weights that still change."""
    tenant: str = ""
    """Whose turn it is when there is no room for all; by default the adapter that ``revision`` names."""

    def __post_init__(self) -> None:
        if not self.tenant:
            object.__setattr__(self, "tenant", self.revision.partition("@")[0])


@dataclass(frozen=True, slots=True)
class Choice:
    """A token, and the log-probabilities that were asked for: its own, and those of the likeliest at its place."""

    token: int
    logprob: float | None = None
    top: Ranked = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """An answer: its text and tokens, where it came from and why it ended.

    ``revision`` names what answered, ``alice@3`` or ``base``, and ``digest`` is its sha256: a name can come to mean
    something else, a digest cannot.
    ``stop_reason`` is ``end`` (the model ended its turn), ``stop`` (a stop text or stop token), ``length``
    (max_tokens) or ``cancelled``. ``seed`` draws the same answer again, under the same options; ``None`` at
    temperature 0, where nothing is drawn.

    Log-probabilities are natural, under the unmodified distribution, and ``None`` where they were not asked for:
    ``logprobs`` has one per token; ``top_logprobs`` has the likeliest ``(token, logprob)`` at the place of every token;
    ``prompt_logprobs`` has one for every token of the prompt but the first, given those before it (as far as the prompt
    was read, when the request was cancelled).
    """

    text: str
    tokens: tuple[int, ...]
    revision: str
    digest: str
    stop_reason: StopReason
    prompt_tokens: int
    seed: int | None = None
    logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[Ranked, ...] | None = None
    prompt_logprobs: tuple[float, ...] | None = None

    @classmethod
    def of(
        cls,
        request: Request,
        reason: StopReason,
        text: str = "",
        choices: Sequence[Choice] = (),
        prompt_logprobs: Sequence[float] = (),
    ) -> Completion:
        """Return the answer to ``request`` that ``choices`` make, with the log-probabilities that it asks for."""
        sampling = request.sampling
        return cls(
            text=text,
            tokens=tuple(choice.token for choice in choices),
            revision=request.revision,
            digest=request.digest,
            stop_reason=reason,
            prompt_tokens=len(request.tokens),
            seed=sampling.seed if sampling.temperature else None,
            logprobs=tuple(c.logprob for c in choices if c.logprob is not None) if sampling.logprobs else None,
            top_logprobs=tuple(choice.top for choice in choices) if sampling.top_logprobs else None,
            prompt_logprobs=tuple(prompt_logprobs) if sampling.prompt_logprobs else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer as it is made: text, the tokens that came with it, and their log-probabilities if asked.

    Text may come later than its tokens: half a character waits for the other half, and the beginning of a stop text
    until it is none.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] | None = None
