"""The engine as one side of a benchmark: requests enter through ``submit`` and leave through their streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from mintbook.bench.batch import Answer, Batch
from mintbook.bench.timing import Timing
from mintbook.config import SampleConfig
from mintbook.engine.engine import Engine
from mintbook.engine.generation import Generation
from mintbook.engine.request import Chunk, Request
from mintbook.errors import MintbookError
from mintbook.model.batch import NO_ADAPTER


class EngineSide:
    """Scheduler, paged KV cache, sampling and streaming are all in the measured time; adapter i is in ``slots[i]``."""

    name = "mintbook"

    def __init__(self, engine: Engine, slots: Sequence[int] = ()) -> None:
        self.engine = engine
        self.slots = slots

    def answer(self, batch: Batch) -> Answer:
        """Answer a batch whose requests all join at the same step.

        The clock of the steps starts when the last row has its first token, so every one of them holds all rows.
        """
        # Prompts are read over several steps: the first rows are that many tokens ahead of the last, and must not end.
        ahead = -(-sum(map(len, batch.prompts)) // self.engine.config.prefill_tokens)
        began, generations = self._submit(batch, spare=ahead + 4)
        streams = [iter(generation) for generation in generations]
        try:
            said = [self._read(stream, 1) for stream in streams]
            first = Timing.now()
            if batch.steps > 1:  # the last token apart: after it, the clock is read at once
                said = [a + self._read(s, batch.steps + 1 - a - 1) for a, s in zip(said, streams, strict=True)]
            for a, stream in zip(said, streams, strict=True):
                self._read(stream, batch.steps + 1 - a)
            last = Timing.now()
        finally:
            for generation in generations:
                generation.cancel()
        done = [generation.result().tokens[: batch.steps + 1] for generation in generations]
        return Answer(first.since(began), last.since(first, parts=max(1, batch.steps)), tuple(done))

    def check_base_rows(self, batch: Batch) -> None:
        """Raise `MintbookError` unless base rows among adapters say, bit for bit, what they say among base rows."""
        adapters = tuple(None if i % 2 else adapter for i, adapter in enumerate(batch.adapters))
        mixed = self._logprobs(replace(batch, adapters=adapters))
        plain = self._logprobs(replace(batch, adapters=(None,) * len(adapters)))
        for i, adapter in enumerate(adapters):
            if adapter is None and mixed[i] != plain[i]:
                raise MintbookError(
                    f"Row {i} of the base has other log-probabilities beside adapters ({mixed[i]}) than without them "
                    f"({plain[i]}). No row was written."
                )

    def _logprobs(self, batch: Batch) -> list[tuple[float, ...]]:
        # One tenant, so that the fair order between adapters gives the mixed batch no other shapes than the plain one.
        _, generations = self._submit(batch, spare=1, logprobs=True, tenant=self.name)
        return [generation.result().logprobs or () for generation in generations]

    def _submit(
        self, batch: Batch, *, spare: int, logprobs: bool = False, tenant: str = ""
    ) -> tuple[Timing, list[Generation]]:
        sampling = SampleConfig(max_tokens=batch.steps + spare, logprobs=logprobs)
        requests = [
            Request(
                tokens=prompt,
                sampling=sampling,
                revision="base" if adapter is None else f"random{adapter}@0",
                digest="base" if adapter is None else f"random{adapter}",
                end_ids=frozenset(),
                tenant=tenant,
            )
            for prompt, adapter in zip(batch.prompts, batch.adapters, strict=True)
        ]
        slots = [NO_ADAPTER if adapter is None else self.slots[adapter] for adapter in batch.adapters]

        def enter(_model: object) -> tuple[Timing, list[Generation]]:
            return Timing.now(), [
                self.engine.submit(request, slot=slot) for request, slot in zip(requests, slots, strict=True)
            ]

        # From inside a call, so that no step runs before the last of them is there.
        return self.engine.call(enter)

    @staticmethod
    def _read(stream: Iterator[Chunk], tokens: int) -> int:
        """Read a stream until at least ``tokens`` tokens have come and return how many did."""
        found = 0
        while found < tokens:
            chunk = next(stream, None)
            if chunk is None:
                raise MintbookError(
                    "An answer ended before the benchmark had its tokens. "
                    "This is a fault of mintbook; please report it."
                )
            found += len(chunk.tokens)
        return found
