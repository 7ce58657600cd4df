"""Recorded decode steps: the buffers' discipline, with the launches repeated by Python where no GPU repeats them.

Off a GPU a "recording" is the function itself, run again over the same buffers by the same kernels, which Triton's
interpreter runs. All that a CUDA graph freezes is made once here too: the batch, the segments, and the launches' sizes.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from mended_interpreter import interpret
from tiny import load_tiny
from torch.utils._python_dispatch import TorchDispatchMode

from mintbook.config import LoraConfig
from mintbook.model import attention, decode_graph, projection
from mintbook.model.batch import PackedBatch, Piece
from mintbook.model.decode_graph import CudaCapture, DecodeGraphs, Run, padded, why_no_graphs
from mintbook.model.inits import initial_page
from mintbook.model.kv_cache import BLOCK, BlockTable, KVCache
from mintbook.model.packed_model import PackedModel
from mintbook.store.page import Page

PROMPTS = (7, 3, 20, 1, 15)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


class Recorder:
    """CUDA's capture, or off a GPU what stands for it: it runs once before, as CUDA's does. It counts."""

    def __init__(self, device: torch.device) -> None:
        self.capture = CudaCapture(device) if device.type == "cuda" else None
        self.recorded = 0

    def __call__(self, run: Run) -> Run:
        self.recorded += 1
        if self.capture is not None:
            return self.capture(run)
        run()
        return run


def result_of(run: Run) -> Run:
    """Like CUDA's recording, keep the result and not the function."""
    out = run()
    return lambda: out


class Decoding:
    """Sequences with their keys and values in one cache, of which any may be continued."""

    def __init__(self, model: PackedModel, patch: pytest.MonkeyPatch) -> None:
        self.model = model
        self.patch = patch
        model.graphs = None
        self.recorder = Recorder(model.device)
        self.graphs = DecodeGraphs(model.bank, self.recorder)
        self.cache = KVCache(64 * BLOCK, model.device)
        self.tables: list[BlockTable] = []
        self.lengths: list[int] = []

    def begin(self, slots: list[int], prompts: tuple[int, ...] = PROMPTS) -> None:
        for slot, length in zip(slots, prompts, strict=True):
            table = self.cache.allocate(length + 30)
            piece = Piece([4 + (11 * at + length) % 250 for at in range(length)], slot, 0, table)
            self._ordinary(PackedBatch.of([piece], device=self.model.device, cache=self.cache))
            self.tables.append(table)
            self.lengths.append(length)

    def batch(self, rows: dict[int, int], token: int = 9) -> PackedBatch:
        """One more token for the sequences ``rows`` (number → slot)."""
        pieces = [Piece([token + i], slot, self.lengths[i], self.tables[i]) for i, slot in rows.items()]
        return PackedBatch.of(pieces, device=self.model.device, cache=self.cache)

    def both(self, rows: dict[int, int], token: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits of a replay and of the ordinary path."""
        return self.replayed(rows, token), self._ordinary(self.batch(rows, token))

    def replayed(self, rows: dict[int, int], token: int = 9) -> torch.Tensor:
        with self.by_triton():
            found = self.graphs.logits(self.batch(rows, token), self.model._decode)
        assert found is not None
        return found[: len(rows)].clone()

    @contextmanager
    def by_triton(self) -> Iterator[None]:
        """Recorded steps run in Triton; off a GPU the ordinary path runs what is usual there."""
        with self.patch.context() as patch:
            if self.model.device.type == "cpu":
                patch.setenv("MINTBOOK_KERNELS", "triton")
            yield

    def _ordinary(self, batch: PackedBatch) -> torch.Tensor:
        return self.model.logits(batch, torch.arange(batch.bounds[-1], device=self.model.device))


def page_of(model: PackedModel, rank: int, seed: int) -> Page:
    page = initial_page(model.sites, LoraConfig(rank=rank, seed=seed))
    generator = torch.Generator().manual_seed(seed)
    for _, b in page.factors().values():
        b.copy_(torch.randn(b.shape, generator=generator) * 0.1)
    return page


@pytest.fixture
def decoding(tiny_model: PackedModel, monkeypatch: pytest.MonkeyPatch) -> Decoding:
    monkeypatch.delenv("MINTBOOK_KERNELS", raising=False)
    if tiny_model.device.type == "cpu":
        interpret(monkeypatch)
    tiny_model.bank.tensor.fill_(float("nan"))
    return Decoding(tiny_model, monkeypatch)


def test_replays_equal_the_ordinary_path_as_batches_shrink_grow_and_change_places(decoding: Decoding) -> None:
    bank = decoding.model.bank
    a, b = bank.load(page_of(decoding.model, 3, 1)), bank.load(page_of(decoding.model, 8, 2))
    slots = {0: a, 1: -1, 2: b, 3: a, 4: -1}
    decoding.begin(list(slots.values()))
    for rows in ((0, 1, 2, 3, 4), (2, 0, 1), (4, 3, 2, 1, 0), (3,), (1, 4), (0, 2, 3)):
        replayed, ordinary = decoding.both({i: slots[i] for i in rows}, token=20 + len(rows))
        torch.testing.assert_close(replayed, ordinary, **CLOSE)
    # 5 rows run as 8, and 3 as 4; the base alone (1, 4) has no launches of adapters.
    assert decoding.recorder.recorded == 4


def test_padding_rows_change_nothing_and_touch_only_the_block_of_nobody(decoding: Decoding) -> None:
    broken = page_of(decoding.model, 4, 3)
    broken.tensor.fill_(float("nan"))
    first, slot = decoding.model.bank.load(broken), decoding.model.bank.load(page_of(decoding.model, 4, 3))
    assert first == 0
    decoding.begin([slot] * 5)
    before = [tuple(t.clone() for t in decoding.cache.layer(layer)) for layer in decoding.cache._layers]
    fewer = decoding.replayed(dict.fromkeys((0, 2, 4), slot))
    written = {decoding.tables[i].row(decoding.lengths[i]) for i in (0, 2, 4)}
    spare = decoding.cache.spare_block * BLOCK
    for layer, kept in enumerate(before):
        for old, new in zip(kept, decoding.cache.layer(layer), strict=True):
            changed = {i for i in range(spare + BLOCK) if not torch.equal(old[i].nan_to_num(), new[i].nan_to_num())}
            assert written <= changed <= written | {spare}
    (recorded,) = decoding.graphs._recorded.values()
    with decoding.by_triton():
        assert recorded.replay().isfinite().all(), "a padding row has an adapter"
    full = decoding.replayed(dict.fromkeys((0, 2, 4, 1), slot))
    assert torch.equal(full[:3], fewer)
    assert decoding.recorder.recorded == 1


def test_a_slot_number_that_is_used_again_shows_the_new_adapter_and_padding_never_any(decoding: Decoding) -> None:
    bank = decoding.model.bank
    first, old = page_of(decoding.model, 8, 4), page_of(decoding.model, 8, 5)
    a, gone = bank.load(first), bank.load(old)
    decoding.begin([a, gone, -1], PROMPTS[:3])
    with_old, ordinary = decoding.both({0: a, 1: gone, 2: -1})
    torch.testing.assert_close(with_old, ordinary, **CLOSE)
    bank.free(gone)
    # Rows that were the old adapter's are padding now, and its factors are poison: none may be read.
    bank.tensor[8:16] = float("nan")
    replayed, ordinary = decoding.both({2: -1, 0: a})
    assert replayed.isfinite().all()
    torch.testing.assert_close(replayed, ordinary, **CLOSE)
    again = bank.load(page_of(decoding.model, 5, 6))
    assert again == gone
    recorded = decoding.recorder.recorded
    with_new, ordinary = decoding.both({0: a, 1: again, 2: -1})
    assert decoding.recorder.recorded == recorded
    torch.testing.assert_close(with_new, ordinary, **CLOSE)
    assert (with_new[1] - with_old[1]).abs().max() > 1e-2
    torch.testing.assert_close(with_new[[0, 2]], with_old[[0, 2]], **CLOSE)


def test_a_slot_that_is_moved_is_followed(decoding: Decoding) -> None:
    bank = decoding.model.bank
    hole, moved = bank.load(page_of(decoding.model, 20, 7)), bank.load(page_of(decoding.model, 8, 8))
    decoding.begin([moved], PROMPTS[:1])
    before, _ = decoding.both({0: moved})
    start = int(bank.starts[moved])
    bank.free(hole)
    bank.load(page_of(decoding.model, 50, 9))
    assert int(bank.starts[moved]) != start
    after, ordinary = decoding.both({0: moved})
    torch.testing.assert_close(after, ordinary, **CLOSE)
    torch.testing.assert_close(after, before, **CLOSE)


def test_a_table_that_grows_and_a_larger_rank_are_recorded_anew(decoding: Decoding) -> None:
    model = decoding.model
    low, high = model.bank.load(page_of(model, 2, 1)), model.bank.load(page_of(model, 12, 2))
    decoding.begin([low, high], (5, 5))
    counts = []
    for rows, length in (({0: low}, 5), ({0: low}, 5), ({1: high}, 5), ({0: low}, 17 * BLOCK)):
        while decoding.tables[0].tokens <= length:
            decoding.cache.grow(decoding.tables[0])
        decoding.lengths[0] = length
        if length > 5:  # the long one is for its shape alone: nothing was ever written there
            for layer in decoding.cache._layers:
                for numbers in decoding.cache.layer(layer):
                    numbers.zero_()
        replayed, ordinary = decoding.both(rows)
        torch.testing.assert_close(replayed, ordinary, **CLOSE)
        counts.append(decoding.recorder.recorded)
    assert counts == [1, 1, 2, 3]


def test_another_cache_is_never_written_by_a_recorded_step(decoding: Decoding) -> None:
    decoding.begin([-1], (5,))
    decoding.both({0: -1})
    kept = [t.clone() for t in decoding.cache.layer(0)]
    other = Decoding(decoding.model, decoding.patch)
    other.graphs = decoding.graphs
    other.begin([-1], (9,))
    torch.testing.assert_close(*other.both({0: -1}), **CLOSE)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(kept, decoding.cache.layer(0), strict=True))


def test_the_longest_unused_recording_is_dropped(decoding: Decoding, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_graph, "MOST", 1)
    decoding.begin([-1] * 5)
    for rows in ((0,), (1, 2), (3, 4), (0,)):
        torch.testing.assert_close(*decoding.both(dict.fromkeys(rows, -1)), **CLOSE)
    assert decoding.recorder.recorded == 3


def test_a_step_that_cannot_be_recorded_runs_the_ordinary_way_and_says_so(decoding: Decoding) -> None:
    def refuse(run: Run) -> Run:
        raise RuntimeError("operation not permitted when stream is capturing")

    model = decoding.model
    decoding.begin([-1], (5,))
    _, ordinary = decoding.both({0: -1})
    model.graphs = DecodeGraphs(model.bank, refuse)
    with pytest.warns(RuntimeWarning, match="not permitted"):
        torch.testing.assert_close(
            model.logits(decoding.batch({0: -1}), torch.tensor([0], device=model.device)), ordinary
        )
    assert torch.equal(model.logits(decoding.batch({0: -1}), torch.tensor([0], device=model.device)), ordinary)
    model.why_no_graphs = None
    assert model.decode_steps == "launch by launch: RuntimeError: operation not permitted when stream is capturing"


def test_the_model_hands_out_copies_of_the_rows_that_are_asked_for(decoding: Decoding) -> None:
    model = decoding.model
    decoding.begin([-1] * 5)
    _, ordinary = decoding.both(dict.fromkeys(range(5), -1))
    model.graphs = decoding.graphs
    with decoding.by_triton():
        found = model.logits(decoding.batch(dict.fromkeys(range(5), -1)), torch.tensor([3, 1], device=model.device))
        kept = found.clone()
        model.logits(decoding.batch(dict.fromkeys(range(5), -1), token=50), torch.tensor([0], device=model.device))
    assert torch.equal(found, kept)
    torch.testing.assert_close(found, ordinary[[3, 1]], **CLOSE)


def test_a_recorded_step_reads_nothing_back_and_makes_no_tensor_of_host_numbers(
    decoding: Decoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What CUDA refuses while it records; the kernels are left out, whose launches torch does not see."""

    class Refuse(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            name = func.overloadpacket.__name__
            assert name not in ("_local_scalar_dense", "lift_fresh", "nonzero", "is_nonzero", "masked_select"), name
            self.seen += 1
            return func(*args, **(kwargs or {}))

    with pytest.raises(AssertionError, match="lift_fresh"), Refuse():
        torch.tensor([1])
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Refuse():
        torch.ones(1).item()
    slot = decoding.model.bank.load(page_of(decoding.model, 4, 1))
    decoding.begin([slot], (5,))
    decoding.both({0: slot})
    monkeypatch.setattr(attention, "paged_attention", lambda q, *_, **__: q)
    monkeypatch.setattr(projection, "gathered_lora", lambda y, *_: y)
    (recorded,) = decoding.graphs._recorded.values()
    with Refuse() as refuse:
        recorded.replay()
    assert refuse.seen > 100


def test_what_is_recorded_does_not_keep_the_model(tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpret(monkeypatch)
    model = load_tiny(tiny_base_folder, torch.float32)
    decoding = Decoding(model, monkeypatch)
    decoding.begin([-1], (5,))
    model.graphs = DecodeGraphs(model.bank, result_of)
    with decoding.by_triton():
        model.logits(decoding.batch({0: -1}), torch.tensor([0]))
    gone, graphs = weakref.ref(model), model.graphs
    gc.disable()
    try:
        del model, decoding
        assert gone() is None
    finally:
        gc.enable()
    assert len(graphs._recorded) == 1


def test_a_step_is_recorded_where_nothing_of_it_is_read_on_the_host(tiny_model: PackedModel) -> None:
    why = why_no_graphs(tiny_model.model)
    assert (
        why == tiny_model.why_no_graphs == (None if tiny_model.device.type == "cuda" else "there are no graphs on cpu")
    )
    assert (tiny_model.graphs is None) is (why is not None)
    assert tiny_model.decode_steps == ("replayed from graphs" if why is None else f"launch by launch: {why}")


def test_padding_is_written_whole() -> None:
    table = BlockTable([3, 4])
    host = PackedBatch.of(
        [Piece([7], 2, 17, table), Piece([8], 0, 1, BlockTable([9]))],
        device=torch.device("cpu"),
        cache=KVCache(16 * BLOCK, torch.device("cpu")),
    ).on_host
    whole = padded(host, 4, 3, 16)
    assert whole.tokens.tolist() == [7, 8, 0, 0]
    assert whole.positions.tolist() == [17, 1, 0, 0]
    assert whole.write_rows.tolist() == [4 * BLOCK + 1, 9 * BLOCK + 1, 16 * BLOCK, 16 * BLOCK]
    assert whole.row_slots.tolist() == [2, 0, -1, -1]
    assert whole.seen.tolist() == [18, 2, 1, 1]
    assert np.array_equal(whole.tables, [[3, 4, 16], [9, 9, 16], [16] * 3, [16] * 3])
