"""Decode steps that are recorded once and replayed: one launch for a whole step, over buffers that never move."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from mintbook_kernels import Segments, backend
from torch import Tensor, nn

from mintbook.model.batch import NO_ADAPTER, PackedBatch, Piece, RowTables
from mintbook.model.kv_cache import BLOCK, KVCache
from mintbook.model.slots import SlotBank
from mintbook.model.upload import Table, joined, views

ROWS = (1, 2, 4, 8, 16, 24, 32)
"""Rows of a recorded step; beyond these, multiples of `MORE_ROWS`."""
MORE_ROWS = 16
LEAST_WIDTH = 16
"""Blocks of the narrowest block table; wider ones have four times as many, and so on."""
LEAST_RANK = 8
"""Rank of the narrowest launch; wider ones have twice as much, and so on. Steps of the base alone have 0."""
MOST = 64
"""Steps that stay recorded."""

Run = Callable[[], Tensor]
Capture = Callable[[Run], Run]
Forward = Callable[[PackedBatch, Segments], Tensor]


def rows_of(rows: int) -> int:
    """Return how many rows are computed for ``rows`` of a step.

    >>> [rows_of(n) for n in (1, 3, 17, 32, 33, 70)]
    [1, 4, 24, 32, 48, 80]
    """
    return next((bucket for bucket in ROWS if rows <= bucket), -(-rows // MORE_ROWS) * MORE_ROWS)


def grown(size: int, least: int, times: int) -> int:
    """Return the first of ``least``, ``least · times``, ``least · times²`` … that holds ``size``.

    >>> grown(16, 16, 4), grown(17, 16, 4)
    (16, 64)
    """
    while least < size:
        least *= times
    return least


@dataclass(frozen=True, slots=True, eq=False)
class _Recorded:
    buffer: Tensor
    replay: Run


class DecodeGraphs:
    """Runs decode-only steps by replaying the launches of one that was recorded.

    A recorded step reads everything about its rows from one buffer, and everything about adapters from the bank's own
    tables (start, rank, scale), which are changed in place when a slot is loaded, moved or freed. The buffer is
    written whole before every replay, so that nothing of an earlier step is left: a padding row has no adapter, one
    token to attend to, and writes to a block that no sequence ever holds.

    ``capture(run)`` returns what does again what ``run`` does now, into the same tensor.
    """

    def __init__(self, bank: SlotBank, capture: Capture) -> None:
        self._bank = bank
        self._capture = capture
        self._cache: KVCache | None = None
        self._recorded: OrderedDict[tuple[int, int, int], _Recorded] = OrderedDict()
        self.failed: str | None = None
        """Why nothing is recorded any more."""

    def logits(self, batch: PackedBatch, forward: Forward) -> Tensor | None:
        """Return the logits ``[≥ T, V]`` of a decode-only batch, which the next call overwrites.

        ``forward`` computes logits from a batch and segments and reads nothing back; it is the same at every call, and
        is not kept, or the model that keeps this would keep itself.
        Returns ``None``, and a warning says why once, after a step could not be recorded.
        """
        if self.failed is not None or batch.cache is None:
            return None
        if batch.cache is not self._cache:
            self._recorded.clear()
            self._cache = batch.cache
        host = batch.on_host
        rank = self._bank.largest_rank(host.row_slots)
        rows, width = rows_of(len(host.tokens)), grown(host.tables.shape[1], LEAST_WIDTH, 4)
        key = (rows, width, grown(rank, LEAST_RANK, 2) if rank else 0)
        tables = padded(host, rows, width, batch.cache.spare_block)
        filling = joined(tables, batch.device)
        known = self._recorded.get(key)
        if known is None:
            known = self._record(forward, batch.cache, tables, filling, key[2])
            if known is None:
                return None
            self._recorded[key] = known
            if len(self._recorded) > MOST:
                self._recorded.popitem(last=False)
        self._recorded.move_to_end(key)
        known.buffer.copy_(filling, non_blocking=True)
        return known.replay()

    def _record(
        self, forward: Forward, cache: KVCache, tables: RowTables[Table], filling: Tensor, rank: int
    ) -> _Recorded | None:
        device, rows = cache.device, len(tables.tokens)
        buffer = filling.to(device, copy=True)
        there = RowTables(*views(buffer, tables))
        batch = PackedBatch((Piece((0,)),) * rows, tuple(range(rows + 1)), cache, device, tables, there)
        segments = Segments.for_replay(there.row_slots, self._bank.rows, rank)
        try:
            return _Recorded(buffer, self._capture(lambda: forward(batch, segments)))
        except RuntimeError as error:  # torch's for all that CUDA refuses
            self.failed = f"{type(error).__name__}: {error}"
            warnings.warn(
                f"Decode steps run launch by launch from now on, because one could not be recorded ({self.failed}). "
                "Answers are the same, later. Please report it.",
                RuntimeWarning,
                stacklevel=2,
            )
            return None


def padded(host: RowTables[Table], rows: int, width: int, spare_block: int) -> RowTables[Table]:
    """Return a decode-only batch's tables with ``rows`` rows and ``width`` blocks, all others those of nobody."""
    count, blocks = host.tables.shape
    tables = np.full((rows, width), spare_block, np.int32)
    tables[:count, :blocks] = host.tables
    return RowTables(
        tokens=_filled(host.tokens, rows, 0),
        positions=_filled(host.positions, rows, 0),
        write_rows=_filled(host.write_rows, rows, spare_block * BLOCK),
        decode_rows=np.arange(rows),
        row_slots=_filled(host.row_slots, rows, NO_ADAPTER),
        seen=_filled(host.seen, rows, 1),
        tables=tables,
    )


def _filled(numbers: Table, rows: int, rest: int) -> Table:
    whole = np.full(rows, rest, numbers.dtype)
    whole[: len(numbers)] = numbers
    return whole


class CudaCapture:
    """Records what a function launches as a CUDA graph; its graphs share their memory, so only one may run at a time.

    The function runs once before: kernels are compiled and lasting tensors are made outside of the recording.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Run) -> Run:
        """Return what replays ``run``."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            run()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads go on meanwhile, and pin pages of adapters; that is no fault of this recording.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            out = run()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay


def why_no_graphs(model: nn.Module) -> str | None:
    """Return why decode steps of a model are not recorded, or ``None`` where they are."""
    weight = next(model.parameters())
    if weight.device.type != "cuda":
        return f"there are no graphs on {weight.device.type}"
    if backend(weight.device, dtype=weight.dtype).name != "triton":
        return "without the Triton kernels a step reads its adapters on the host"
    ropes = {str(getattr(module, "rope_type", "")) for module in model.modules()}
    if any("dynamic" in rope or "longrope" in rope for rope in ropes):
        return "the base's positions depend on the longest sequence, which is read on the host"
    return None
