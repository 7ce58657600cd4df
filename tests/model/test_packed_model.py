"""The packed forward: equal to the model's own, the same bits with a zero adapter, gradients that are right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import load_tiny

from mintbook.config import LoraConfig
from mintbook.errors import CapacityError, TargetError
from mintbook.model.batch import PackedBatch, Piece
from mintbook.model.inits import initial_page
from mintbook.model.kv_cache import BLOCK, KVCache
from mintbook.model.packed_model import GradientPage, PackedModel
from mintbook.model.sites import choose_sites
from mintbook.store.page import Page

LENGTHS = (5, 17, 30)


@pytest.fixture
def model(tiny_model: PackedModel) -> PackedModel:
    tiny_model.bank.tensor.fill_(float("nan"))
    return tiny_model


def bits(numbers: torch.Tensor) -> torch.Tensor:
    return numbers.contiguous().view(torch.int32 if numbers.dtype == torch.float32 else torch.int16)


def random_page(model: PackedModel, rank: int, seed: int, targets: str | tuple[str, ...] = "all-linear") -> Page:
    page = initial_page(choose_sites(model.sites, targets), LoraConfig(rank=rank, seed=seed))
    generator = torch.Generator().manual_seed(seed)
    for _, b in page.factors().values():
        b.copy_(torch.randn(b.shape, generator=generator) * 0.05)
    return page


def sequences(seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 260, (n,), generator=generator).tolist() for n in LENGTHS]


def all_logits(model: PackedModel, pieces: list[Piece]) -> list[torch.Tensor]:
    batch = PackedBatch.of(pieces, device=model.device)
    logits = model.logits(batch, torch.arange(len(batch.tokens)))
    return list(logits.split([len(piece.tokens) for piece in pieces]))


def merged_logits(model: PackedModel, page: Page, tokens: list[int]) -> torch.Tensor:
    """The same adapter added to the base's weights by hand: W + s·BA."""
    factors = page.factors()
    scale = dict(zip(factors, page.scales, strict=True))
    originals = {}
    for name, (a, b) in factors.items():
        weight = model.model.get_submodule(name).linear.weight
        originals[name] = weight.detach().clone()
        weight.data += scale[name] * b.T @ a
    try:
        return all_logits(model, [Piece(tokens)])[0]
    finally:
        for name, weight in originals.items():
            model.model.get_submodule(name).linear.weight.data.copy_(weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_zero_adapter_is_bit_identical_to_the_base_in_prefill_decode_and_mixed(
    tiny_base_folder: Path, dtype: torch.dtype
) -> None:
    model = load_tiny(tiny_base_folder, dtype)
    model.bank.tensor.fill_(float("nan"))
    slot = model.bank.load(initial_page(model.sites, LoraConfig(rank=8)))
    for start in (None, "decode", "mixed"):
        outs = []
        for who in (-1, slot):
            cache = KVCache(256, model.device)
            tables = [cache.allocate(len(s)) for s in sequences()]
            cut = {None: [0, 0, 0], "decode": [len(s) - 1 for s in sequences()], "mixed": [0, 16, 29]}[start]
            before = [Piece(s[:c], who, table=t) for s, c, t in zip(sequences(), cut, tables, strict=True) if c]
            if before:
                model.logits(PackedBatch.of(before, device=model.device, cache=cache), torch.tensor([0]))
            now = [Piece(s[c:], who, c, t) for s, c, t in zip(sequences(), cut, tables, strict=True)]
            batch = PackedBatch.of(now, device=model.device, cache=cache)
            assert batch.decode_only is (start == "decode")
            outs.append(model.logits(batch, torch.arange(len(batch.tokens))))
        assert torch.equal(*(bits(out) for out in outs)), start


def test_base_rows_keep_their_bits_beside_an_adapter(model: PackedModel) -> None:
    slot = model.bank.load(random_page(model, 8, 1))
    alone = all_logits(model, [Piece(s) for s in sequences()])
    mixed = all_logits(model, [Piece(s, slot if i == 1 else -1) for i, s in enumerate(sequences())])
    assert torch.equal(bits(alone[0]), bits(mixed[0]))
    assert torch.equal(bits(alone[2]), bits(mixed[2]))
    assert (alone[1] - mixed[1]).abs().max() > 1e-2


@pytest.mark.parametrize("targets", ["all-linear", "attention", ("q_proj", "down_proj")])
def test_an_adapter_computes_what_merged_weights_compute(model: PackedModel, targets: str | tuple[str, ...]) -> None:
    page = random_page(model, 6, 2, targets)
    slot = model.bank.load(page)
    tokens = sequences()[2]
    torch.testing.assert_close(
        all_logits(model, [Piece(tokens, slot)])[0], merged_logits(model, page, tokens), rtol=1e-4, atol=1e-4
    )


def test_eight_adapters_of_different_ranks_and_base_rows_equal_one_by_one(model: PackedModel) -> None:
    slots = [model.bank.load(random_page(model, rank, rank)) for rank in (1, 2, 3, 4, 5, 8, 13, 20)]
    asks = [(slot, sequences(i)[i % 3]) for i, slot in enumerate([*slots, -1, -1])]
    together = all_logits(model, [Piece(tokens, slot) for slot, tokens in asks])
    for (slot, tokens), logits in zip(asks, together, strict=True):
        alone = all_logits(model, [Piece(tokens, slot)])[0]
        torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-4)
        top = alone.topk(2).values
        sure = (top[:, 0] - top[:, 1]) > 2e-4
        assert torch.equal(logits.argmax(-1)[sure], alone.argmax(-1)[sure])


def test_gradients_equal_those_of_a_plain_lora_layer(model: PackedModel) -> None:
    page = random_page(model, 4, 5)
    slot = model.bank.load(page)
    grads = GradientPage(page, slot, model.bank)
    tokens = sequences()
    batch = PackedBatch.of([Piece(tokens[0]), Piece(tokens[2], slot)], device=model.device)
    keep = torch.arange(len(batch.tokens))

    def loss_of(logits: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(logits, -1)[:, 7].mean().neg()

    model.backward(batch, keep, grads, loss_of)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(page.tensor.shape, generator=generator)
    expected = float((grads.page.tensor * direction).sum())
    step = 1e-3
    losses = []
    for sign in (1, -1):
        model.bank.write(slot, page.like(page.tensor + sign * step * direction))
        losses.append(float(loss_of(model.logits(batch, keep).double())))
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(expected, rel=2e-2)
    model.bank.write(slot, page)
    twice = GradientPage(page, slot, model.bank)
    for _ in range(2):
        model.backward(batch, keep, twice, loss_of)
    torch.testing.assert_close(twice.page.tensor, 2 * grads.page.tensor)


def test_prefill_in_chunks_and_decode_equal_one_prefill(model: PackedModel) -> None:
    slot = model.bank.load(random_page(model, 8, 3))
    tokens = sequences()[2]
    whole = all_logits(model, [Piece(tokens, slot)])[0]
    cache = KVCache(64, model.device)
    table = cache.allocate(len(tokens))
    at = 0
    for size in (7, 1, 12, 1, 9):
        piece = Piece(tokens[at : at + size], slot, at, table)
        batch = PackedBatch.of([piece], device=model.device, cache=cache)
        logits = model.logits(batch, batch.last_rows())[0]
        at += size
        torch.testing.assert_close(logits, whole[at - 1], rtol=1e-4, atol=1e-4)
    assert at == len(tokens)


def test_scattered_blocks_give_the_same_answer(model: PackedModel) -> None:
    tokens = sequences()[2]
    whole = all_logits(model, [Piece(tokens)])[0]
    cache = KVCache(4 * BLOCK, model.device)
    held = [cache.allocate(BLOCK) for _ in range(4)]
    cache.release(held[3])
    cache.release(held[1])
    table = cache.allocate(2 * BLOCK)
    assert not table.contiguous
    for start, end in ((0, 20), (20, 30)):
        batch = PackedBatch.of([Piece(tokens[start:end], -1, start, table)], device=model.device, cache=cache)
        assert torch.equal(batch.write_rows, table.rows(start, end, model.device))
        logits = model.logits(batch, batch.last_rows())[0]
        torch.testing.assert_close(logits, whole[end - 1], rtol=1e-4, atol=1e-4)


def test_the_bank_says_when_it_is_full_and_reuses_freed_rows(model: PackedModel) -> None:
    slots = [model.bank.load(random_page(model, 16, seed)) for seed in range(model.bank.rows // 16)]
    with pytest.raises(CapacityError, match="rank-rows"):
        model.bank.load(random_page(model, 1, 0))
    model.bank.free(slots[1])
    again = model.bank.load(random_page(model, 16, 9))
    assert again == slots[1]


def test_a_slot_number_that_is_used_again_keeps_nothing_of_the_layers_that_the_new_adapter_leaves_alone(
    model: PackedModel,
) -> None:
    old = model.bank.load(random_page(model, 8, 1))
    model.bank.free(old)
    page = random_page(model, 8, 2, "attention")
    again = model.bank.load(page)
    assert again == old
    tokens = sequences()[1]
    torch.testing.assert_close(
        all_logits(model, [Piece(tokens, again)])[0], merged_logits(model, page, tokens), rtol=1e-4, atol=1e-4
    )


def test_an_adapter_of_another_base_is_refused(model: PackedModel) -> None:
    page = random_page(model, 2, 0)
    other = Page(
        page.tensor,
        tuple(type(s)(f"other.{s.name}", s.in_features, s.out_features) for s in page.sites),
        page.ranks,
        page.scales,
    )
    before = model.bank.free_rows
    with pytest.raises(TargetError, match="lacks"):
        model.bank.load(other)
    assert model.bank.free_rows == before
