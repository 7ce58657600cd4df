"""The training of one adapter: steps, validation, early stopping, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mintbook.config import TrainConfig
from mintbook.engine.engine import Engine
from mintbook.errors import DataError, RunFailed
from mintbook.model.batch import PackedBatch, Piece
from mintbook.model.packed_model import GradientPage, PackedModel
from mintbook.train.anchors import Anchor
from mintbook.train.checkpoint import TrainingState
from mintbook.train.examples import Example
from mintbook.train.loss import SftLoss
from mintbook.train.optimizer import clip_, learning_rate_at


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one optimizer step did; losses are means per token in nats, before the step."""

    step: int
    loss: float
    kl: float
    grad_norm: float
    learning_rate: float
    tokens: int
    seconds: float
    validation: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the step as plain data; a validation that was not made is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The sequences of a run: what is learnt, what judges it, and the anchors that hold it to the base."""

    train: Sequence[Example]
    validation: Sequence[Example] = ()
    anchors: Sequence[Anchor] = ()


class Trainer:
    """Trains the adapter in ``slot`` from ``state``, in place; every forward runs in the engine's loop.

    The masters in ``state.page`` are fp32; after each step they are rounded into the slot, so that the next forward
    computes with exactly the numbers that a served revision has.
    """

    def __init__(
        self, engine: Engine, slot: int, state: TrainingState, config: TrainConfig, data: TrainingData
    ) -> None:
        if not data.train:
            raise DataError("There is nothing to train on: no example has a target token.")
        self.engine = engine
        self.slot = slot
        self.state = state
        self.config = config
        self.data = data

    def run(self, checkpoint: Path, stopping: Callable[[], bool], report: Callable[[StepReport], None]) -> int | None:
        """Step until the run is complete and return the step whose weights it ends with; ``None`` when stopped.

        That step is the last, or under early stopping the one of the best validation, with its moments. The state is
        saved to ``checkpoint`` at the start, every ``checkpoint_every`` steps and when stopped. Raises
        `RunFailed` when a loss or gradient is not finite; the state is then still that of the step before.
        """
        state, config = self.state, self.config
        if not checkpoint.is_file():
            state.save(checkpoint)
        while state.step < config.steps and not self._exhausted():
            if stopping():
                state.save(checkpoint)
                return None
            done = self.engine.call(self._step)
            if self.data.validation and (state.step % config.validate_every == 0 or state.step == config.steps):
                done = self._validated(done)
            report(done)
            if config.checkpoint_every and state.step % config.checkpoint_every == 0 and state.step < config.steps:
                state.save(checkpoint)
        state.save(checkpoint)
        kept = state.return_to_best()
        self.engine.call(lambda model: model.bank.write(self.slot, state.page))
        return kept

    def validation_loss(self) -> float:
        """Return the mean cross-entropy per target token over the validation examples."""
        sequences = [example.tokens for example in self.data.validation]
        found = self.engine.logprobs(sequences, [self.slot] * len(sequences))
        picked = [row[torch.tensor(e.mask[1:])] for row, e in zip(found, self.data.validation, strict=True)]
        return -float(torch.cat(picked).mean())

    def _exhausted(self) -> bool:
        return bool(self.config.patience) and self.state.unimproved >= self.config.patience

    def _validated(self, done: StepReport) -> StepReport:
        state = self.state
        loss = self.validation_loss()
        if state.best is None or loss < state.best:
            state.best, state.unimproved = loss, 0
            if self.config.patience:
                state.remember()
        else:
            state.unimproved += 1
        return StepReport(**{**asdict(done), "validation": loss})

    def _step(self, model: PackedModel) -> StepReport:
        began = time.perf_counter()
        state, config, grads = self.state, self.config, self._grads
        passes = [self._pass(state.step * config.accumulation + i) for i in range(config.accumulation)]
        targets = sum(sum(e.mask[1:]) for examples, _ in passes for e in examples)
        anchors = sum(len(anchor.top_ids) for _, held in passes for anchor in held)
        grads.clear()
        task = kl = 0.0
        for examples, held in passes:
            part, drift = self._backward(model, examples, held, targets, anchors)
            task, kl = task + part, kl + drift
        norm = clip_(grads.page.tensor, config.clip)
        if not (math.isfinite(task) and math.isfinite(kl) and math.isfinite(norm)):
            raise RunFailed(
                f"Step {state.step + 1} gave loss {task:.4g}, KL {kl:.4g} and gradient norm {norm:.4g}; "
                f"the weights are those of step {state.step}. "
                f"Train again with a lower learning_rate (now {config.learning_rate:g})."
            )
        rate = learning_rate_at(state.step, config)
        state.optimizer.step(state.page.tensor, grads.page.tensor, config, rate)
        model.bank.write(self.slot, state.page)
        state.step += 1
        tokens = sum(len(e.tokens) for examples, held in passes for e in (*examples, *(a.example for a in held)))
        return StepReport(state.step, task, kl, norm, rate, tokens, time.perf_counter() - began)

    def _pass(self, number: int) -> tuple[list[Example], list[Anchor]]:
        config, data = self.config, self.data
        size = min(config.batch_size, len(data.train))
        examples = [data.train[i] for i in endless_order(len(data.train), config.seed, number * size, size)]
        if not data.anchors or not config.anchor:
            return examples, []
        size = min(config.anchor_batch_size, len(data.anchors))
        order = endless_order(len(data.anchors), config.seed + 1, number * size, size)
        return examples, [data.anchors[i] for i in order]

    def _backward(
        self, model: PackedModel, examples: list[Example], held: list[Anchor], targets: int, anchors: int
    ) -> tuple[float, float]:
        both = [*examples, *(anchor.example for anchor in held)]
        batch = PackedBatch.of([Piece(e.tokens[:-1], slot=self.slot) for e in both], device=model.device)
        wanted = [token for e in examples for token, target in zip(e.tokens[1:], e.mask[1:], strict=True) if target]
        loss = SftLoss(
            targets=torch.tensor(wanted, device=model.device),
            top_ids=_stacked([anchor.top_ids for anchor in held], torch.int64, model.device),
            top_logprobs=_stacked([anchor.top_logprobs for anchor in held], torch.float32, model.device),
            targets_in_step=targets,
            anchors_in_step=anchors,
        )
        terms: list[float] = []

        def loss_of(logits: Tensor) -> Tensor:
            task, kl = loss.terms(logits)
            terms.extend((float(task.detach()), float(kl.detach())))
            return task + self.config.anchor * kl

        model.backward(batch, _target_rows(both, model.device), self._grads, loss_of)
        return terms[0], terms[1]

    @cached_property
    def _grads(self) -> GradientPage:
        return GradientPage(self.state.page, self.slot, self.engine.model.bank)


def endless_order(count: int, seed: int, start: int, length: int) -> list[int]:
    """Return places ``start … start + length`` of an endless row of shuffled rounds over ``count`` things.

    >>> sorted(endless_order(5, seed=3, start=10, length=5))
    [0, 1, 2, 3, 4]
    """
    places: list[int] = []
    for round_number in range(start // count, (start + length - 1) // count + 1):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + round_number)
        order = torch.randperm(count, generator=generator).tolist()
        first = round_number * count
        places.extend(order[max(0, start - first) : start + length - first])
    return places


def _stacked(parts: Sequence[Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.cat(list(parts)).to(device, dtype) if parts else torch.empty((0, 1), dtype=dtype, device=device)


def _target_rows(examples: Sequence[Example], device: torch.device) -> Tensor:
    """Return the rows of a packed batch (each example without its last token) that predict a target token."""
    rows: list[int] = []
    at = 0
    for example in examples:
        rows.extend(at + i for i, target in enumerate(example.mask[1:]) if target)
        at += len(example.tokens) - 1
    return torch.tensor(rows, device=device)
