"""The packed token batch: the one representation that training, prefill and decode share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from mintbook.model.kv_cache import BlockTable, KVCache
from mintbook.model.upload import Table, upload

NO_ADAPTER = -1
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Piece:
    """The tokens of one sequence that a forward reads.

    ``slot`` is the slot of its adapter or `NO_ADAPTER`; ``start`` counts the sequence's tokens that are already in the
    KV cache; ``table`` says where they lie (``None``: no cache is read or written, as in training).
    """

    tokens: Sequence[int]
    slot: int = NO_ADAPTER
    start: int = 0
    table: BlockTable | None = None


class RowTables(NamedTuple, Generic[T]):
    """What a forward reads about its T rows, on the host or on the device; see `PackedBatch` for each."""

    tokens: T
    positions: T
    write_rows: T
    decode_rows: T
    row_slots: T
    seen: T
    tables: T


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Tokens of several sequences in one flat list; sequence i has the rows ``bounds[i] : bounds[i + 1]``."""

    pieces: tuple[Piece, ...]
    bounds: tuple[int, ...]
    cache: KVCache | None
    """Where every piece has its table, or ``None`` where nothing is cached, as in training."""
    device: torch.device
    on_host: RowTables[Table]
    placed: RowTables[Tensor] | None = None
    """Where the tables lie on the device, if somebody else has put them there."""

    @classmethod
    def of(cls, pieces: Sequence[Piece], *, device: torch.device, cache: KVCache | None = None) -> PackedBatch:
        """Pack the pieces in the order given."""
        lengths = [len(piece.tokens) for piece in pieces]
        bounds = tuple(accumulate(lengths, initial=0))
        return cls(tuple(pieces), bounds, cache, device, _row_tables(pieces, lengths, bounds, cached=cache is not None))

    @cached_property
    def on_device(self) -> RowTables[Tensor]:
        """All that a forward reads, copied together when it is first asked for."""
        return self.placed or RowTables(*upload(self.on_host, self.device))

    @property
    def tokens(self) -> Tensor:
        """The token of every row, ``[T]`` int64."""
        return self.on_device.tokens

    @property
    def positions(self) -> Tensor:
        """Its place in its sequence, ``[T]`` int64."""
        return self.on_device.positions

    @property
    def row_slots(self) -> Tensor:
        """The slot of its adapter or `NO_ADAPTER`, ``[T]`` int32."""
        return self.on_device.row_slots

    @property
    def write_rows(self) -> Tensor:
        """Where in ``cache`` its keys and values lie, ``[T]`` int64."""
        return self.on_device.write_rows

    @property
    def decodes(self) -> int:
        """B, how many pieces bring one token to the cache: their attention is one call."""
        return len(self.on_host.seen)

    @property
    def decode_rows(self) -> Tensor:
        """The rows of the `decodes`, ``[B]`` int64."""
        return self.on_device.decode_rows

    @property
    def tables(self) -> Tensor:
        """The block numbers of the `decodes`, ``[B, M]`` int32; those beyond a sequence's length mean nothing."""
        return self.on_device.tables

    @property
    def seen(self) -> Tensor:
        """How many tokens each of the `decodes` attends to, its own counted, ``[B]`` int32."""
        return self.on_device.seen

    @property
    def decode_only(self) -> bool:
        """Whether every sequence brings one token: one row per request."""
        return len(self.pieces) == self.bounds[-1]

    @cached_property
    def chunks(self) -> tuple[tuple[int, int, Tensor | slice], ...]:
        """For each piece that brings several tokens to the cache: its first row, its end, and where its tokens lie."""
        return tuple(
            (first, end, piece.table.rows(0, piece.start + end - first, self.device))
            for piece, first, end in zip(self.pieces, self.bounds, self.bounds[1:], strict=False)
            if piece.table is not None and end - first > 1
        )

    def last_rows(self) -> Tensor:
        """Return the row of every sequence's last token ``[S]``."""
        return upload([np.array(self.bounds[1:]) - 1], self.device)[0]


def _row_tables(
    pieces: Sequence[Piece], lengths: Sequence[int], bounds: Sequence[int], *, cached: bool
) -> RowTables[Table]:
    shifts = np.array([piece.start for piece in pieces], np.int64) - np.array(bounds[:-1], np.int64)
    write_rows = [
        piece.table.row(at)
        for piece, length in zip(pieces, lengths, strict=True)
        if cached and piece.table is not None
        for at in range(piece.start, piece.start + length)
    ]
    decodes = [i for i, length in enumerate(lengths) if length == 1] if cached else []
    blocks = [table.blocks for i in decodes if (table := pieces[i].table) is not None]
    most = max(map(len, blocks), default=0)
    tables = [row + row[:1] * (most - len(row)) for row in blocks]
    return RowTables(
        tokens=np.fromiter(chain.from_iterable(piece.tokens for piece in pieces), np.int64, bounds[-1]),
        positions=np.arange(bounds[-1]) + np.repeat(shifts, lengths),
        write_rows=np.array(write_rows, np.int64),
        decode_rows=np.array([bounds[i] for i in decodes], np.int64),
        row_slots=np.repeat(np.array([piece.slot for piece in pieces], np.int32), lengths),
        seen=np.array([pieces[i].start + 1 for i in decodes], np.int32),
        tables=np.array(tables, np.int32).reshape(len(decodes), most),
    )
