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


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Rows of the KV cache: those that a piece writes, and all that it attends to; the same for every layer."""

    new: Tensor | slice
    seen: Tensor | slice

    @classmethod
    def of(cls, piece: Piece, device: torch.device) -> Place | None:
        """Return where a piece's tokens lie, or ``None`` when it uses no cache."""
        if piece.table is None:
            return None
        end = piece.start + len(piece.tokens)
        return cls(piece.table.rows(piece.start, end, device), piece.table.rows(0, end, device))


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
    places: tuple[Place | None, ...]
    """Where each piece's keys and values lie in ``cache``; ``None`` for a piece without a table."""
    cache: KVCache | None

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
            places=tuple(Place.of(piece, device) for piece in pieces),
            cache=cache,
        )

    @cached_property
    def write_rows(self) -> Tensor:
        """Where in ``cache`` the batch's own keys and values lie, ``[T]``; every piece must have a table."""
        rows = [
            piece.table.row(at)
            for piece in self.pieces
            if piece.table is not None
            for at in range(piece.start, piece.start + len(piece.tokens))
        ]
        return torch.tensor(rows, device=self.tokens.device)

    @property
    def decode_only(self) -> bool:
        """Whether every sequence brings one token: one row per request."""
        return len(self.pieces) == len(self.tokens)

    def last_rows(self) -> Tensor:
        """Return the row of every sequence's last token ``[S]``."""
        return torch.tensor([end - 1 for end in self.bounds[1:]], device=self.tokens.device)
