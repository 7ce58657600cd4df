"""The engine as a side: its answers, and the check of base rows beside adapters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from mintbook.bench.adapters import in_slots, random_pages
from mintbook.bench.batch import Batch
from mintbook.bench.engine_side import EngineSide
from mintbook.bench.setting import Setting
from mintbook.bench.sides import open_engine
from mintbook.engine.engine import Engine
from mintbook.errors import MintbookError
from mintbook.model.batch import PackedBatch

ROOM: dict[str, Any] = {"slot_rows": 32, "kv_tokens": 1024, "prefill_tokens": 48}


@pytest.fixture(scope="module")
def engine(tiny_base_folder: Path) -> Iterator[Engine]:
    with open_engine(Setting(base=tiny_base_folder, dtype="float32", threads=1), ROOM) as (_, engine):
        yield engine


def batch(steps: int) -> Batch:
    return Batch.random(6, 20, adapters=range(2), steps=steps, vocabulary=260)


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_every_row_has_its_tokens_whatever_else_was_in_the_batch(engine: Engine, steps: int) -> None:
    with in_slots(engine, random_pages(engine, [4, 8])) as slots:
        side = EngineSide(engine, slots)
        together = side.answer(batch(steps))
        for prompt, adapter, tokens in zip(batch(0).prompts, batch(0).adapters, together.tokens, strict=True):
            assert len(tokens) == steps + 1
            assert side.answer(Batch((prompt,), (adapter,), steps)).tokens == (tokens,)
    assert together.prefill.wall_s > 0 and together.step.wall_s > 0
    assert engine.model.bank.free_rows == 32


def test_base_rows_beside_adapters_are_the_base(engine: Engine) -> None:
    with in_slots(engine, random_pages(engine, [4, 8])) as slots:
        EngineSide(engine, slots).check_base_rows(batch(3))


def test_a_base_row_that_adapters_touch_is_found(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = engine.model.logits

    def touched(packed: PackedBatch, keep: Tensor) -> Tensor:
        found = logits(packed, keep)
        return found * (1 + 1e-6) if bool((packed.row_slots >= 0).any()) else found

    monkeypatch.setattr(engine.model, "logits", touched)
    with (
        in_slots(engine, random_pages(engine, [4, 8])) as slots,
        pytest.raises(MintbookError, match="has other log-probabilities beside adapters"),
    ):
        EngineSide(engine, slots).check_base_rows(batch(3))
