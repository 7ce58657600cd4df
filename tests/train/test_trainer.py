"""The trainer: losses that are what they say, runs that can be cut anywhere, early stopping, divergence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mintbook.config import EngineConfig, LoraConfig, TrainConfig
from mintbook.engine.engine import Engine
from mintbook.errors import CorruptStore, DataError, RunFailed
from mintbook.model.inits import initial_page
from mintbook.model.packed_model import PackedModel
from mintbook.train.anchors import Anchor
from mintbook.train.checkpoint import TrainingState
from mintbook.train.examples import Example
from mintbook.train.optimizer import AdamW, learning_rate_at
from mintbook.train.trainer import StepReport, Trainer, TrainingData, endless_order

FAST = {"steps": 8, "batch_size": 2, "learning_rate": 5e-3, "checkpoint_every": 3, "anchor_batch_size": 2}


@pytest.fixture
def engine(tiny_model: PackedModel, tiny_tokenizer: object) -> Iterator[Engine]:
    engine = Engine(tiny_model, tiny_tokenizer, EngineConfig(kv_tokens=1024))
    yield engine
    engine.close()


def example(engine: Engine, prompt: str, answer: str) -> Example:
    first, second = (tuple(engine.tokenizer(text).input_ids) for text in (prompt, answer))
    return Example(tokens=first + second, mask=(False,) * len(first) + (True,) * len(second))


def anchor(engine: Engine, held: Example) -> Anchor:
    logits = engine.logits([held.tokens[:-1]], [-1], start=[held.mask.index(True) - 1])[0]
    top = torch.log_softmax(logits, dim=-1).topk(64)
    return Anchor(held, top.indices, top.values)


def data(engine: Engine, anchors: bool = True) -> TrainingData:
    train = [example(engine, f"what is {i}? ", f"it is {i * i}.") for i in range(6)]
    held = [anchor(engine, example(engine, f"say {w} ", w * 2)) for w in ("red", "blue", "green")] if anchors else []
    return TrainingData(train=train[:5], validation=train[5:], anchors=held)


def fresh(engine: Engine, rank: int = 4) -> TrainingState:
    page = initial_page(engine.model.sites, LoraConfig(rank=rank))
    return TrainingState(page, AdamW.fresh(page.tensor))


def train(
    engine: Engine,
    state: TrainingState,
    path: Path,
    config: TrainConfig,
    stop_at: int = 10**9,
    given: TrainingData | None = None,
) -> list[StepReport]:
    slot = engine.call(lambda model: model.bank.load(state.page))
    reports: list[StepReport] = []
    try:
        Trainer(engine, slot, state, config, given or data(engine)).run(
            path, lambda: len(reports) >= stop_at, reports.append
        )
    finally:
        engine.call(lambda model: model.bank.free(slot))
    return reports


def losses(reports: list[StepReport]) -> list[tuple[float, float]]:
    return [(r.loss, r.kl) for r in reports]


def test_training_learns_and_anchors_hold(engine: Engine, tmp_path: Path) -> None:
    config = TrainConfig(**{**FAST, "steps": 40})
    free = train(engine, fresh(engine), tmp_path / "a.safetensors", TrainConfig(**{**config.to_dict(), "anchor": 0.0}))
    held = train(engine, fresh(engine), tmp_path / "b.safetensors", config)
    assert free[-1].loss < 0.5 * free[0].loss
    assert held[-1].loss < 0.8 * held[0].loss
    assert held[0].kl == pytest.approx(0.0, abs=1e-5), "B = 0: the adapter starts as the base"
    assert held[-1].kl > 0
    assert all(r.kl == 0 for r in free)


def test_the_first_loss_is_the_mean_cross_entropy_of_the_targets(engine: Engine, tmp_path: Path) -> None:
    given = data(engine, anchors=False)
    config = TrainConfig(**{**FAST, "batch_size": 5, "steps": 1})
    (report,) = train(engine, fresh(engine), tmp_path / "a.safetensors", config, given=given)
    rows = engine.logprobs([e.tokens for e in given.train], [-1] * 5)
    picked = torch.cat([row[torch.tensor(e.mask[1:])] for row, e in zip(rows, given.train, strict=True)])
    assert report.loss == pytest.approx(-float(picked.mean()), rel=1e-4)


def test_accumulated_passes_make_the_step_of_one_big_batch(engine: Engine, tmp_path: Path) -> None:
    given = TrainingData(train=data(engine).train[:4], anchors=data(engine).anchors[:1])
    shared = {**FAST, "steps": 1, "anchor_batch_size": 1}
    big, small = fresh(engine), fresh(engine)
    whole = train(engine, big, tmp_path / "a.safetensors", TrainConfig(**{**shared, "batch_size": 4}), given=given)
    parts = train(
        engine,
        small,
        tmp_path / "b.safetensors",
        TrainConfig(**{**shared, "batch_size": 2, "accumulation": 2}),
        given=given,
    )
    assert parts[0].loss == pytest.approx(whole[0].loss, rel=1e-5)
    assert parts[0].grad_norm == pytest.approx(whole[0].grad_norm, rel=1e-4)


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_stopped_run_resumes_with_the_same_bits(engine: Engine, tmp_path: Path, cut: int) -> None:
    config = TrainConfig(**FAST)
    whole_state = fresh(engine)
    whole = train(engine, whole_state, tmp_path / "whole.safetensors", config)
    path = tmp_path / "cut.safetensors"
    first = train(engine, fresh(engine), path, config, stop_at=cut)
    resumed_state = TrainingState.load(path, fresh(engine).page)
    assert resumed_state.step == cut
    rest = train(engine, resumed_state, path, config)
    assert losses(first) + losses(rest) == losses(whole)
    assert torch.equal(resumed_state.page.tensor, whole_state.page.tensor)
    assert torch.equal(resumed_state.optimizer.second, whole_state.optimizer.second)
    assert resumed_state.optimizer.steps == whole_state.optimizer.steps == 8


def test_early_stopping_returns_the_best_weights(engine: Engine, tmp_path: Path) -> None:
    config = TrainConfig(
        **{
            **FAST,
            "steps": 200,
            "learning_rate": 5e-2,
            "validation": 0.2,
            "validate_every": 2,
            "patience": 2,
            "anchor": 0.0,
        }
    )
    state = fresh(engine)
    slot = engine.call(lambda model: model.bank.load(state.page))
    reports: list[StepReport] = []
    kept = Trainer(engine, slot, state, config, data(engine)).run(tmp_path / "a", lambda: False, reports.append)
    engine.call(lambda model: model.bank.free(slot))
    judged = [r.validation for r in reports if r.validation is not None]
    assert len(reports) < 200
    assert state.best == min(judged) == judged[-3]
    assert kept == reports[-1].step - 4 == state.optimizer.steps, "weights, moments and step are those of the best"
    found = TrainingState.load(tmp_path / "a", fresh(engine).page)
    assert found.best_state is not None
    assert torch.equal(found.best_state.page.tensor, state.page.tensor)
    slot = engine.call(lambda model: model.bank.load(state.page))
    assert Trainer(engine, slot, state, config, data(engine)).validation_loss() == pytest.approx(state.best, abs=1e-6)


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(engine: Engine, tmp_path: Path) -> None:
    state = fresh(engine)
    before = state.page.tensor.clone()
    held = engine.model.backward

    def broken(batch: Any, keep: Any, grads: Any, loss_of: Any) -> Any:
        return held(batch, keep, grads, lambda logits: loss_of(logits * float("nan")))

    engine.model.backward = broken  # type: ignore[method-assign]
    with pytest.raises(RunFailed, match="learning_rate"):
        train(engine, state, tmp_path / "a.safetensors", TrainConfig(**FAST))
    assert torch.equal(state.page.tensor, before)
    assert state.optimizer.steps == 0


def test_nothing_to_train_on_is_refused(engine: Engine) -> None:
    with pytest.raises(DataError, match="nothing to train"):
        Trainer(engine, 0, fresh(engine), TrainConfig(), TrainingData(train=()))


def test_a_broken_checkpoint_is_named(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    fresh(engine).save(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CorruptStore, match=r"c\.safetensors"):
        TrainingState.load(path, fresh(engine).page)


def test_adamw_is_torchs_adamw() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(3, 5, generator=generator)
    theirs = ours.clone().requires_grad_()
    config = TrainConfig(weight_decay=0.1)
    state = AdamW.fresh(ours)
    reference = torch.optim.AdamW(
        [theirs], lr=1e-2, betas=(config.beta1, config.beta2), eps=config.eps, weight_decay=0.1
    )
    for _ in range(5):
        grad = torch.randn(3, 5, generator=generator)
        state.step(ours, grad, config, 1e-2)
        theirs.grad = grad
        reference.step()
    torch.testing.assert_close(ours, theirs.detach())


def test_the_rate_warms_up_and_falls_to_a_tenth() -> None:
    config = TrainConfig(steps=100, warmup=0.1, learning_rate=1.0)
    rates = [learning_rate_at(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[-1] == pytest.approx(0.1)
    assert sorted(rates[10:], reverse=True) == rates[10:]
    short = TrainConfig(steps=4, warmup=0.0, learning_rate=1.0)
    assert [learning_rate_at(step, short) for step in (0, 3)] == [1.0, pytest.approx(0.1)]
    assert learning_rate_at(0, TrainConfig(steps=1, learning_rate=1.0)) == 1.0
    for steps, warmup in ((2, 0.0), (2, 0.5), (3, 0.1), (10, 0.9)):
        config = TrainConfig(steps=steps, warmup=warmup, learning_rate=1.0)
        rates = [learning_rate_at(step, config) for step in range(steps)]
        assert max(rates) == 1.0
        assert rates[-1] == pytest.approx(0.1), "a fall of one step falls too"
    assert learning_rate_at(3, TrainConfig(steps=4, warmup=1.0, learning_rate=1.0)) == 1.0


def test_the_order_is_one_endless_row_of_rounds() -> None:
    whole = endless_order(7, 3, 0, 21)
    assert [endless_order(7, 3, at, 1)[0] for at in range(21)] == whole
    assert all(sorted(whole[i : i + 7]) == list(range(7)) for i in (0, 7, 14))
    assert endless_order(7, 4, 0, 7) != whole[:7]
