"""The packed token batch: the one representation that training, prefill and decode share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from mintbook.model.kv_cache import BlockTable, KVCache

NO_ADAPTER = -1


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


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Tokens of several sequences in one flat list.

    ``tokens [T]``, ``positions [T]`` (in the sequence), ``row_slots [T]``; sequence i has the rows
    ``bounds[i] : bounds[i + 1]``.
    """

    tokens: Tensor
    positions: Tensor
    row_slots: Tensor
    bounds: tuple[int, ...]
    pieces: tuple[Piece, ...]
    cache: KVCache | None
    """Where every piece has its table, or ``None`` where nothing is cached, as in training."""

    @classmethod
    def of(cls, pieces: Sequence[Piece], *, device: torch.device, cache: KVCache | None = None) -> PackedBatch:
        """Pack the pieces in the order given."""
        # Plain lists, and one tensor of each: a few hundred small tensors would cost a decode step a twentieth.
        lengths = [len(piece.tokens) for piece in pieces]
        spans = list(zip(pieces, lengths, strict=True))
        row_slots = [piece.slot for piece, length in spans for _ in range(length)]
        return cls(
            tokens=torch.tensor([token for piece in pieces for token in piece.tokens], device=device),
            positions=torch.tensor([at for p, n in spans for at in range(p.start, p.start + n)], device=device),
            row_slots=torch.tensor(row_slots, dtype=torch.int32, device=device),
            bounds=tuple(accumulate(lengths, initial=0)),
            pieces=tuple(pieces),
            cache=cache,
        )

    @cached_property
    def write_rows(self) -> Tensor:
        """Where in ``cache`` the batch's own keys and values lie, ``[T]``."""
        rows = [
            piece.table.row(at)
            for piece in self.pieces
            if piece.table is not None
            for at in range(piece.start, piece.start + len(piece.tokens))
        ]
        return torch.tensor(rows, device=self.tokens.device)

    @cached_property
    def decodes(self) -> tuple[int, ...]:
        """The B pieces that bring one token to the cache: their attention is one call."""
        return () if self.cache is None else tuple(i for i, piece in enumerate(self.pieces) if len(piece.tokens) == 1)

    @cached_property
    def decode_rows(self) -> Tensor:
        """The rows of the `decodes` ``[B]``."""
        return torch.tensor([self.bounds[i] for i in self.decodes], device=self.tokens.device)

    @cached_property
    def tables(self) -> Tensor:
        """The block numbers of the `decodes`, ``[B, M]`` int32; those beyond a sequence's length mean nothing."""
        blocks = [table.blocks for i in self.decodes if (table := self.pieces[i].table) is not None]
        most = max(len(row) for row in blocks)
        rows = [row + row[:1] * (most - len(row)) for row in blocks]
        return torch.tensor(rows, dtype=torch.int32, device=self.tokens.device)

    @cached_property
    def seen(self) -> Tensor:
        """How many tokens each of the `decodes` attends to, its own counted, ``[B]`` int32."""
        lengths = [self.pieces[i].start + 1 for i in self.decodes]
        return torch.tensor(lengths, dtype=torch.int32, device=self.tokens.device)

    @property
    def decode_only(self) -> bool:
        """Whether every sequence brings one token: one row per request."""
        return len(self.pieces) == len(self.tokens)

    def last_rows(self) -> Tensor:
        """Return the row of every sequence's last token ``[S]``."""
        return torch.tensor([end - 1 for end in self.bounds[1:]], device=self.tokens.device)
