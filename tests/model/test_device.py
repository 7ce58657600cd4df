"""What a step needs lies on the model's device: shown on torch's device without numbers, which refuses to be read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mintbook_kernels import Factors, Segments
from torch import Tensor
from transformers import AutoModelForCausalLM

from mintbook.config import LoraConfig, SampleConfig
from mintbook.engine.request import Request
from mintbook.engine.sampler import Sampler
from mintbook.model import attention, projection
from mintbook.model.batch import PackedBatch, Piece
from mintbook.model.inits import initial_page
from mintbook.model.kv_cache import BLOCK, BlockTable, KVCache
from mintbook.model.packed_model import GradientPage, PackedModel
from mintbook.model.upload import joined, upload, views

NOWHERE = torch.device("meta")


def looked_at(
    y: Tensor,
    x: Tensor,
    factors: Factors,
    segments: Segments,
    *,
    grads: Factors | None = None,
    trigger: Tensor | None = None,
) -> Tensor:
    tables = (segments.slots, segments.order, segments.active, segments.active_bounds)
    tables += (segments.chunk_slot, segments.chunk_start, segments.chunk_len, segments.rows)
    for f in filter(None, (factors, grads)):
        tables += (*f.a, *f.b, f.start, f.rank, f.scale)
    assert {t.device for t in (y, x, *tables)} == {NOWHERE}
    assert segments.tokens == len(x)
    return y if trigger is None else y + trigger


@pytest.fixture
def model(tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> PackedModel:
    # Plain torch reads ranks on the host, the kernels do not: here what they are given is looked at.
    for name in ("grouped_lora", "gathered_lora"):
        monkeypatch.setattr(projection, name, looked_at)
    base = AutoModelForCausalLM.from_pretrained(tiny_base_folder, dtype=torch.float32).to(NOWHERE)
    base.set_attn_implementation(attention.NAME)
    return PackedModel(base.eval().requires_grad_(False), slot_rows=64)


def test_the_device_without_numbers_refuses_what_would_be_wrong() -> None:
    here, there = torch.ones(2), torch.ones(2, device=NOWHERE)
    for wrong in (lambda: here + there, there.tolist, lambda: bool(there[0]), there.nonzero):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wrong()


@pytest.mark.parametrize("lengths", [(1, 1, 1), (5, 1, 9)], ids=["decode", "mixed"])
def test_a_step_is_on_one_device_and_reads_nothing_back(model: PackedModel, lengths: tuple[int, ...]) -> None:
    page = initial_page(model.sites, LoraConfig(rank=4))
    gone, slot = model.bank.load(page), model.bank.load(page)
    model.bank.free(gone)
    cache = KVCache(32 * BLOCK, NOWHERE)
    tables = [cache.allocate(40), BlockTable([9, 4, 7]), cache.allocate(40)]
    pieces = [Piece([7] * n, s, 20, t) for n, s, t in zip(lengths, (slot, -1, slot), tables, strict=True)]
    batch = PackedBatch.of(pieces, device=NOWHERE, cache=cache)
    logits = model.logits(batch, batch.last_rows())
    assert logits.shape == (3, 260)
    assert logits.device == NOWHERE
    assert all(t.device == NOWHERE for t in batch.on_device)
    assert all(t.device == NOWHERE for t in cache.layer(0))


def test_a_training_step_is_on_one_device(model: PackedModel) -> None:
    page = initial_page(model.sites, LoraConfig(rank=4))
    slot = model.bank.load(page)
    grads = GradientPage(page, slot, model.bank)
    batch = PackedBatch.of([Piece([7] * 5), Piece([8] * 9, slot)], device=NOWHERE)
    loss = model.backward(batch, batch.last_rows(), grads, lambda logits: logits.float().square().mean())
    assert loss.device == grads.page.tensor.device == NOWHERE


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"repetition_penalty": 1.2},
        {"temperature": 0.7, "presence_penalty": 0.5, "logprobs": True},
    ],
    ids=str,
)
def test_a_draw_waits_for_nothing(options: dict[str, float]) -> None:
    request = Request(tokens=(1, 2), sampling=SampleConfig(**options), revision="base", end_ids=frozenset())
    sampler = Sampler(request, torch.device("cpu"))
    sampler._generator = None  # type: ignore[assignment]  # there is none for this device
    drawn = sampler.draw(torch.empty(9, device=NOWHERE), torch.empty((), dtype=torch.int64, device=NOWHERE))
    assert drawn.shape == ((2,) if options.get("logprobs") else (1,))
    assert drawn.device == NOWHERE


def test_one_copy_carries_tables_of_every_type_and_shape() -> None:
    batch = PackedBatch.of([Piece([3, 4, 5], 2, 0), Piece([6], -1, 0)], device=torch.device("cpu"))
    tables = (*batch.on_host, batch.on_host.tokens.reshape(2, 2))
    found = views(joined(tables, torch.device("cpu")), tables)
    for table, tensor in zip(tables, found, strict=True):
        assert torch.equal(tensor, torch.from_numpy(table))
        assert tensor.data_ptr() % 16 == 0
    assert [t.shape for t in upload(tables, NOWHERE)] == [t.shape for t in found]
