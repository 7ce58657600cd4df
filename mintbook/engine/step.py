"""One step: a forward over what the scheduler planned, and a token for every sequence that is read to its end."""

from __future__ import annotations

import time

import numpy as np

from mintbook.engine.counters import Ending, Tally
from mintbook.engine.readout import Readout
from mintbook.engine.request import Choice, Completion, StopReason
from mintbook.engine.scheduler import Scheduler
from mintbook.engine.sequence import Sequence
from mintbook.model.batch import NO_ADAPTER, PackedBatch, Piece
from mintbook.model.packed_model import PackedModel
from mintbook.model.upload import upload

Planned = list[tuple[Sequence, Piece]]


class Stepper:
    """Runs steps and ends sequences; a fault ends the sequence that has it, and the others go on."""

    def __init__(self, model: PackedModel, scheduler: Scheduler, tally: Tally) -> None:
        self._model = model
        self._scheduler = scheduler
        self._tally = tally

    def step(self) -> None:
        """Run one step of what the scheduler plans."""
        planned = self._scheduler.plan()
        self._tally.adapters_in_step = len({s.slot for s, _ in planned} - {NO_ADAPTER})
        if planned:
            self._read(planned)

    def finish(self, sequence: Sequence, reason: StopReason) -> None:
        """End a sequence that was admitted with what it has said so far."""
        self._scheduler.drop(sequence)
        self.end(sequence, reason)

    def fail(self, sequence: Sequence, error: Exception) -> None:
        """End a sequence that was admitted with an error."""
        self._scheduler.drop(sequence)
        self.end(sequence, error)

    def end(self, sequence: Sequence, ending: StopReason | Exception) -> None:
        """Tell whoever waits how a sequence ended that the scheduler does not know, or knows no more."""
        item: Completion | BaseException
        reason: Ending = "error"
        try:
            if isinstance(ending, Exception):
                item = ending
            else:
                item, reason = sequence.completion(ending), ending
        except Exception as error:  # noqa: BLE001 — it is this request's alone; the others go on
            item = error
        self._tally.end(reason, time.perf_counter())
        sequence.generation.end(item)

    def _read(self, planned: Planned) -> None:
        try:
            batch = PackedBatch.of(
                [piece for _, piece in planned], device=self._model.device, cache=self._scheduler.room.cache
            )
            readout = Readout(planned, batch.bounds)
            logits = self._model.logits(batch, *upload([np.array(readout.rows)], self._model.device))
        except Exception as error:  # noqa: BLE001 — whoever has the fault gets it
            self._read_alone(planned, error)
            return
        for sequence, piece in planned:
            self._advance(sequence, len(piece.tokens))
        now = time.perf_counter()
        for sequence, choice in readout.outcomes(logits):
            try:
                if isinstance(choice, Exception):
                    raise choice
                reason = self._say(sequence, choice, now)
            except Exception as error:  # noqa: BLE001 — it is this request's alone; the others go on
                self.fail(sequence, error)
            else:
                if reason is not None:
                    self.finish(sequence, reason)

    def _read_alone(self, planned: Planned, error: Exception) -> None:
        """Run a step that failed again for each sequence alone: rows are written anew, so nothing is left of it."""
        if len(planned) == 1:
            self.fail(planned[0][0], error)
        else:
            for one in planned:
                self._read([one])

    def _advance(self, sequence: Sequence, tokens: int) -> None:
        if sequence.read < len(sequence.request.tokens):
            self._tally.tokens_read += tokens
            self._scheduler.fair.charge(sequence.tenant, prompt=tokens)
        sequence.read += tokens
        if sequence.kept < len(sequence.digests):
            self._scheduler.room.keep(sequence)

    def _say(self, sequence: Sequence, choice: Choice, now: float) -> StopReason | None:
        timings = self._tally.next_token if sequence.answer else self._tally.first_token
        timings.add(now - sequence.heard)
        sequence.heard = now
        self._tally.tokens_generated += 1
        self._scheduler.fair.charge(sequence.tenant, generated=1)
        return sequence.say(choice)
