"""Attention over a cache in blocks: against the reference, and that a row's bits are its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from lora_cases import DEVICE, NATIVE, bits, deviation
from mintbook_kernels import paged_attention
from mintbook_kernels.native.library import LEVELS, library
from mintbook_kernels.paged_attention import native
from mintbook_kernels.paged_attention.reference import paged_attention as reference
from tolerances import TOLERANCE
from torch import Tensor

BACKENDS = ("torch", *NATIVE, "triton")
INVARIANT = (*NATIVE, "triton")
DTYPES = (torch.float32, torch.bfloat16)
LENGTHS = (1, 15, 16, 33, 70)
needs_native = pytest.mark.skipif(not NATIVE, reason="no compiled op, or a GPU")
# Query heads, key heads, head size, tokens of a block.
SHAPES = ((9, 3, 64, 16), (4, 4, 16, 16), (6, 1, 33, 5), (20, 1, 80, 16))


@dataclass(frozen=True, eq=False)
class Call:
    """A batch whose cache is NaN wherever no sequence has a token, and whose tables are wild past their ends."""

    q: Tensor
    keys: Tensor
    values: Tensor
    tables: Tensor
    lengths: Tensor
    block: int

    def __call__(self, backend: str | None = None) -> Tensor:
        return paged_attention(**self.operands(), backend=backend)

    def reference(self) -> Tensor:
        return reference(**self.operands())

    def operands(self) -> dict[str, Any]:
        names = ("q", "keys", "values", "tables", "lengths", "block")
        return {name: getattr(self, name) for name in names} | {"scale": 1.7 * self.q.shape[2] ** -0.5}

    def rows(self, sequence: int) -> Tensor:
        token = torch.arange(int(self.lengths[sequence]), device=DEVICE)
        return self.tables[sequence].long()[token // self.block] * self.block + token % self.block


def make_call(
    dtype: torch.dtype, shape: tuple[int, int, int, int] = SHAPES[0], lengths: tuple[int, ...] = LENGTHS, spare: int = 2
) -> Call:
    heads, key_heads, size, block = shape
    counts = [math.ceil(length / block) for length in lengths]
    blocks = torch.randperm(sum(counts) + 3, dtype=torch.int32)
    tables = torch.full((len(lengths), max(counts) + spare), 2**31 - 1, dtype=torch.int32)
    for sequence, count in enumerate(counts):
        tables[sequence, :count] = blocks[sum(counts[:sequence]) :][:count]
    # One allocation for both: a token's keys and values lie side by side, so that rows are strided.
    cache = torch.full((len(blocks) * block, 2, key_heads, size), math.nan, dtype=dtype, device=DEVICE)
    q = torch.randn(len(lengths), heads + 2, size).to(DEVICE, dtype)[:, 1:-1]
    call = Call(
        q, cache[:, 0], cache[:, 1], tables.to(DEVICE), torch.tensor(lengths, dtype=torch.int32).to(DEVICE), block
    )
    for sequence in range(len(lengths)):
        rows = call.rows(sequence)
        cache[rows] = torch.randn(len(rows), 2, key_heads, size).to(DEVICE, dtype)
    return call


def moved(call: Call, order: list[int], *, spare: int) -> Call:
    """Return the sequences in another order, in a larger cache, in other blocks."""
    used = make_call(
        call.q.dtype, (*call.q.shape[1:2], *call.keys.shape[1:], call.block), tuple(call.lengths[order].tolist()), spare
    )
    for new, old in enumerate(order):
        used.keys[used.rows(new)], used.values[used.rows(new)] = call.keys[call.rows(old)], call.values[call.rows(old)]
    return replace(used, q=call.q[order])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches(shape: tuple[int, int, int, int], dtype: torch.dtype, backend: str) -> None:
    call = make_call(dtype, shape)
    found, wanted = call(backend), call.reference()
    assert found.dtype == dtype and found.shape == call.q.shape
    assert deviation(found, wanted) <= TOLERANCE[dtype]
    assert deviation(found, wanted.flip(1)) > TOLERANCE[dtype]
    last = replace(call, lengths=call.lengths - (call.lengths > 1).int())
    assert deviation(found, last.reference()) > TOLERANCE[dtype], "the last token makes no difference"


@needs_native
@pytest.mark.parametrize("level", range(len(LEVELS)))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_instruction_set_matches(
    shape: tuple[int, int, int, int], dtype: torch.dtype, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = library()
    if level > found.level:
        pytest.skip(f"this machine has no {LEVELS[level]}")
    monkeypatch.setattr(native, "library", lambda: replace(found, level=level))
    call = make_call(dtype, shape)
    assert deviation(call("native"), call.reference()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("backend", INVARIANT)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_of_a_row_are_its_own(dtype: torch.dtype, backend: str) -> None:
    call = make_call(dtype)
    together = call(backend)
    order = [3, 0, 4, 4, 1, 2]
    assert torch.equal(bits(moved(call, order, spare=9)(backend)), bits(together[order]))
    for sequence in range(len(LENGTHS)):
        assert torch.equal(bits(moved(call, [sequence], spare=0)(backend)), bits(together[sequence : sequence + 1]))


@pytest.mark.parametrize("backend", INVARIANT)
def test_the_size_of_a_block_changes_no_bits(backend: str) -> None:
    call = make_call(torch.bfloat16, lengths=(70,))
    rows = call.rows(0)
    single = replace(call, tables=rows[None].int(), block=1)
    assert torch.equal(bits(single(backend)), bits(call(backend)))


@needs_native
def test_the_number_of_threads_changes_no_bits() -> None:
    call = make_call(torch.bfloat16, lengths=(700, 3, 1500, 64, 1, 900))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = call("native")
        torch.set_num_threads(3)
        assert all(torch.equal(bits(call("native")), bits(alone)) for _ in range(20))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_scores_do_not_overflow(backend: str) -> None:
    call = make_call(torch.float32)
    call = replace(call, q=call.q * 300)
    found, wanted = call(backend), call.reference()
    assert found.isfinite().all() and deviation(found, wanted) <= 100 * TOLERANCE[torch.float32]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_of_its_own_reaches_a_row_and_no_other(backend: str) -> None:
    call = make_call(torch.float32)
    call.keys[call.rows(3)[20]] = math.nan
    call.values[call.rows(4)[69]] = math.nan
    assert call(backend).isnan().flatten(1).all(dim=1).tolist() == [False, False, False, True, True]
    assert call(backend).isnan().flatten(1).any(dim=1).tolist() == [False, False, False, True, True]


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_may_lie_anywhere(backend: str) -> None:
    call = make_call(torch.bfloat16)
    heads_first = call.q.transpose(0, 1).contiguous().transpose(0, 1)
    assert heads_first.stride() != call.q.stride()
    assert torch.equal(bits(replace(call, q=heads_first)(backend)), bits(call(backend)))
    assert replace(call, q=call.q[:0], tables=call.tables[:0], lengths=call.lengths[:0])(backend).shape == (0, 9, 64)


@needs_native
def test_a_table_that_leaves_the_cache_is_refused() -> None:
    call = make_call(torch.float32)
    blocks = len(call.keys) // call.block
    far, unused = call.tables.clone(), call.tables.clone()
    far[4, 0], unused[3, 2] = blocks, -1
    for wrong, sequence in (
        ({"lengths": call.lengths - 1}, 0),
        ({"lengths": call.lengths + 16}, 0),
        ({"lengths": call.lengths + 112, "tables": torch.zeros_like(call.tables)}, 0),
        ({"tables": far}, 4),
        ({"tables": unused}, 3),
    ):
        with pytest.raises(IndexError, match=rf"Sequence {sequence} .* 1 to 112 tokens, in blocks 0 to {blocks - 1}"):
            replace(call, **wrong)("native")


def test_operands_that_do_not_fit_are_refused() -> None:
    call = make_call(torch.float32)
    for wrong, said in (
        ({"q": call.q[:, :4]}, "Q a multiple of K"),
        ({"keys": call.keys[:, :0], "values": call.values[:, :0]}, "Q a multiple of K"),
        ({"lengths": call.lengths[:2]}, r"lengths \[B\]"),
        ({"tables": call.tables.long()}, "int32"),
        ({"q": call.q.bfloat16()}, "one precision"),
        ({"q": torch.randn(5, 64, 9).transpose(1, 2)}, "side by side"),
        ({"q": call.q.clone().requires_grad_()}, "no gradient"),
    ):
        with pytest.raises(ValueError, match=said):
            replace(call, **wrong)("torch")


def test_a_head_that_is_too_large_is_left_to_torch() -> None:
    call = make_call(torch.float32, (2, 1, 520, 16), lengths=(5, 20))
    assert deviation(call(), call.reference()) <= TOLERANCE[torch.float32]
    for backend in INVARIANT:
        with pytest.raises(ValueError, match="up to 512 numbers. Ask for 'torch'"):
            call(backend)
