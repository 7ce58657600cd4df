"""One request on its way through the engine: what has been read, and what has been said."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from mintbook.engine.detokenizer import Detokenizer
from mintbook.engine.generation import Generation
from mintbook.engine.request import Chunk, Completion, Request, StopReason
from mintbook.model.batch import NO_ADAPTER
from mintbook.model.kv_cache import Aside, BlockTable


@dataclass(slots=True, eq=False)
class Sequence:
    """A request in the engine: it waits, then runs (it has a ``table``), or is set ``aside`` until it runs again."""

    generation: Generation
    detokenizer: Detokenizer
    generator: torch.Generator
    digests: tuple[bytes, ...] = ()
    """Of the whole blocks of its prompt, for the prefix cache."""
    slot: int = NO_ADAPTER
    order: int = 0
    """Its place in the order of arrival."""
    table: BlockTable | None = None
    aside: Aside | None = None
    tokens: list[int] = field(init=False)
    read: int = 0
    """How many of its tokens have their keys and values in the cache."""
    kept: int = 0
    """How many blocks of its prompt the prefix cache has heard of."""
    stepped: int = 0
    """The last step that it was part of."""
    answer: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    heard: float = field(default_factory=time.perf_counter)
    """When it was submitted, and from its first token on, when the last one came."""

    def __post_init__(self) -> None:
        self.tokens = list(self.request.tokens)

    @property
    def request(self) -> Request:
        """What was asked."""
        return self.generation.request

    @property
    def tenant(self) -> str:
        """Whose turn it takes."""
        return self.generation.request.tenant

    @property
    def most_tokens(self) -> int:
        """The most tokens whose keys and values it can come to need."""
        return len(self.request.tokens) + self.request.sampling.max_tokens

    def say(self, token: int, logprob: float | None) -> StopReason | None:
        """Add a token to the answer, hand its text on, and return why the answer ends with it, if it does."""
        self.answer.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        if token in self.request.end_ids:
            return "end"
        self.tokens.append(token)
        text = self.detokenizer.add(token)
        self.generation.put(Chunk(text, (token,), None if logprob is None else (logprob,)))
        if self.detokenizer.stopped:
            return "stop"
        return "length" if len(self.answer) == self.request.sampling.max_tokens else None

    def completion(self, reason: StopReason) -> Completion:
        """Hand on the text that was held back, and return the whole answer."""
        if rest := self.detokenizer.finish():
            self.generation.put(Chunk(rest, ()))
        return Completion(
            text=self.detokenizer.text,
            tokens=tuple(self.answer),
            logprobs=tuple(self.logprobs) if self.request.sampling.logprobs else None,
            revision=self.request.revision,
            digest=self.request.digest,
            stop_reason=reason,
            prompt_tokens=len(self.request.tokens),
        )
