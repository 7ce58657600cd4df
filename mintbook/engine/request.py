"""What is asked of the engine, and what it answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from mintbook.config import SampleConfig

StopReason = Literal["end", "stop", "length", "cancelled"]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """An answer: its text and tokens, where it came from and why it ended.

    ``revision`` names what answered, ``alice@3`` or ``base``, and ``digest`` is its sha256: a name can come to mean
    something else, a digest cannot.
    ``stop_reason`` is ``end`` (the model ended its turn), ``stop`` (a stop text), ``length`` (max_tokens) or
    ``cancelled``. ``logprobs`` has the natural log-probability of every token under the unmodified distribution.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    revision: str
    digest: str
    stop_reason: StopReason
    prompt_tokens: int

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
