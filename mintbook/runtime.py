"""What every noun of a session works with: the resident base, the store, the engine and the slots."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from mintbook.config import SampleConfig
from mintbook.display.live import Live
from mintbook.engine.engine import Engine
from mintbook.engine.generation import Generation
from mintbook.engine.request import Completion, Request
from mintbook.errors import CapacityError, ConfigError
from mintbook.evals.perplexity import Perplexity
from mintbook.evals.recall import Score
from mintbook.model.base import Base
from mintbook.model.batch import NO_ADAPTER
from mintbook.run import Run
from mintbook.serve.residency import Residency
from mintbook.store.revisions import Revision
from mintbook.store.store import Store

Prompt = str | Sequence[Mapping[str, str]]
"""One user turn, or a conversation of ``{"role": …, "content": …}`` turns."""


@dataclass(slots=True, eq=False)
class Baseline:
    """What the plain base scored, measured once per session."""

    general: Score | None = None
    prose: Perplexity | None = None


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Runtime:
    """The shared parts of one session, and the two questions that everyone asks of them."""

    base: Base
    store: Store
    engine: Engine
    residency: Residency
    baseline: Baseline = field(default_factory=Baseline)
    runs: WeakSet[Run[Any]] = field(default_factory=WeakSet)
    """Long actions that may still be going on."""

    def submit(self, revision: Revision | None, prompt: Prompt, sampling: SampleConfig) -> Generation:
        """Enqueue a prompt for a revision (``None``: the plain base); its slot stays leased until the answer ends."""
        tokens = tuple(self.base.renderer.prompt(prompt))
        longest = len(tokens) + sampling.max_tokens
        if longest > self.base.max_length:
            raise ConfigError(
                f"A prompt of {len(tokens)} tokens with max_tokens={sampling.max_tokens} may reach {longest} tokens; "
                f"{self.base.name} was made for {self.base.max_length}. Shorten the prompt or lower max_tokens."
            )
        lease = None if revision is None else self.residency.lease(revision, self.store)
        request = Request(
            tokens=tokens,
            sampling=sampling,
            revision="base" if revision is None else revision.reference,
            digest=self.base.digest if revision is None else revision.digest,
            end_ids=self.base.renderer.end_ids,
            cache_key=f"{self.base.digest}:{'base' if revision is None else revision.weights_digest}",
            tenant="base" if revision is None else revision.record,
        )

        def release() -> None:
            if lease is not None:
                lease.end()

        try:
            slot = NO_ADAPTER if lease is None else lease.slot.result() if lease.slot.done() else lease.slot
            return self.engine.submit(request, on_end=release, slot=slot)
        except BaseException:
            release()
            raise

    def end_runs(self) -> None:
        """Stop every run that goes on and wait until its state is saved."""
        for run in list(self.runs):
            run.end()

    def _submit_with_patience(
        self,
        ask: tuple[Revision | None, Prompt],
        config: SampleConfig,
        running: Sequence[Generation],
        say: Callable[[], None],
    ) -> Generation:
        """Submit; while there is no slot, wait for the oldest of one's own requests instead of failing."""
        while True:
            try:
                return self.submit(*ask, config)
            except CapacityError:
                oldest = next((generation for generation in running if not generation.done), None)
                if oldest is None:
                    raise
                while not oldest.wait(0.25):
                    say()

    @contextmanager
    def leased(self, revision: Revision | None) -> Iterator[int]:
        """Keep a revision's slot for the length of a ``with`` block; the plain base has `NO_ADAPTER`."""
        if revision is None:
            yield NO_ADAPTER
            return
        with self.residency.lease(revision, self.store) as slot:
            yield slot

    def complete(
        self,
        asks: Sequence[tuple[Revision | None, Prompt]],
        sampling: SampleConfig | Sequence[SampleConfig],
        *,
        doing: str = "answering",
    ) -> list[Completion]:
        """Answer all asks in shared batches, in their order, with progress; an interrupt cancels what is not done."""
        configs = [sampling] * len(asks) if isinstance(sampling, SampleConfig) else list(sampling)
        running: list[Generation] = []
        try:
            with Live() as live:

                def say() -> None:
                    live.line(f"{doing}: {sum(generation.done for generation in running)} of {len(asks)}")

                for ask, config in zip(asks, configs, strict=True):
                    running.append(self._submit_with_patience(ask, config, running, say))
                for generation in running:
                    while not generation.wait(0.25):
                        say()
            return [generation.result() for generation in running]
        except BaseException:
            for generation in running:
                generation.cancel()
            raise
