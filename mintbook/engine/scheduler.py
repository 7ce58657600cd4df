"""Who is read and who is continued in the next step; plain Python over token counts."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import torch

from mintbook.engine.detokenizer import Detokenizer
from mintbook.engine.request import Generation
from mintbook.model.batch import Piece
from mintbook.model.kv_cache import BLOCK, BlockTable, KVCache


@dataclass(slots=True, eq=False)
class Sequence:
    """A request that has been admitted: what has been read, what has been said."""

    generation: Generation
    table: BlockTable
    detokenizer: Detokenizer
    generator: torch.Generator
    tokens: list[int]
    read: int = 0
    answer: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def piece(self, budget: int) -> Piece:
        """Return the sequence's next unread tokens, at most ``budget`` of them."""
        tokens = self.tokens[self.read : self.read + budget]
        return Piece(tokens, slot=self.generation.request.slot, start=self.read, table=self.table)


class Scheduler:
    """First come, first served: sequences are admitted while KV blocks and places last.

    A step continues every running sequence by one token, and reads up to ``prefill_tokens`` tokens of new prompts.
    """

    def __init__(self, cache: KVCache, *, max_sequences: int, prefill_tokens: int) -> None:
        self.cache = cache
        self.max_sequences = max_sequences
        self.prefill_tokens = prefill_tokens
        self.waiting: deque[Generation] = deque()
        self.running: list[Sequence] = []

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.waiting and not self.running

    def next_to_admit(self) -> Generation | None:
        """Take the next waiting request if there is room for its prompt and its longest answer."""
        if not self.waiting:
            return None
        full = len(self.running) >= self.max_sequences
        if not self.waiting[0].cancelled and (full or self.needed_tokens(self.waiting[0]) > self.cache.free_tokens):
            return None
        return self.waiting.popleft()

    def needed_tokens(self, generation: Generation) -> int:
        """Return the KV rows that a request can come to need, block by block."""
        tokens = len(generation.request.tokens) + generation.request.sampling.max_tokens
        return -(-tokens // BLOCK) * BLOCK

    def plan(self) -> list[tuple[Sequence, Piece]]:
        """Return the pieces of the next step: every decode, then prompts within the budget."""
        planned = []
        budget = self.prefill_tokens
        for sequence in self.running:
            unread = len(sequence.tokens) - sequence.read
            piece = sequence.piece(1 if unread == 1 else budget)
            if unread > 1:
                budget -= len(piece.tokens)
            if piece.tokens:
                planned.append((sequence, piece))
        return planned

    def drop(self, sequence: Sequence) -> None:
        """Forget a sequence and give its blocks back."""
        self.running.remove(sequence)
        self.cache.release(sequence.table)
