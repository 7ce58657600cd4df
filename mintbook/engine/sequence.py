"""One request on its way through the engine: what has been read, and what has been said."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from mintbook.engine.detokenizer import Detokenizer
from mintbook.engine.generation import Generation
from mintbook.engine.request import Choice, Chunk, Completion, Request, StopReason
from mintbook.engine.sampler import Sampler
from mintbook.model.batch import NO_ADAPTER
from mintbook.model.kv_cache import Aside, BlockTable


@dataclass(slots=True, eq=False)
class Sequence:
    """A request in the engine: it waits, then runs (it has a ``table``), or is set ``aside`` until it runs again."""

    generation: Generation
    detokenizer: Detokenizer
    sampler: Sampler
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
    answer: list[Choice] = field(default_factory=list)
    prompt_logprobs: list[float] = field(default_factory=list)
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

    def say(self, choice: Choice) -> StopReason | None:
        """Add a token to the answer, hand its text on, and return why the answer ends with it, if it does."""
        token, logprob = choice.token, choice.logprob
        self.answer.append(choice)
        if token in self.request.end_ids:
            return "end"
        if token in self.request.sampling.stop_ids:
            return "stop"
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
        return Completion.of(self.request, reason, self.detokenizer.text, self.answer, self.prompt_logprobs)
