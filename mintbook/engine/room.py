"""Where sequences keep their keys and values: their own blocks, and beginnings that they share."""

from __future__ import annotations

from mintbook.engine.chunks import TILE
from mintbook.engine.prefix_cache import PrefixCache
from mintbook.engine.sequence import Sequence
from mintbook.model.kv_cache import BLOCK, BlockTable, KVCache, blocks_for


class Room:
    """Gives sequences blocks to begin with and to grow, and lets go of kept prefixes when there is no other room.

    Sequences that begin alike have the same blocks there. They are whole and never written again.
    """

    def __init__(self, cache: KVCache, *, fixed_chunks: bool) -> None:
        self.cache = cache
        self.prefixes = PrefixCache(cache)
        # What is shared ends where a chunk ends, or the chunks after it would depend on what others had read.
        self._unit = (TILE if fixed_chunks else BLOCK) // BLOCK
        self.served_tokens = 0

    def enter(self, sequence: Sequence, spare: int) -> bool:
        """Give a sequence blocks for its tokens and the next one, with what is known of them already.

        Returns whether they are there, with ``spare`` blocks left for others to grow.
        """
        count = blocks_for(len(sequence.tokens) + 1)
        known = [] if sequence.aside else self.prefixes.find(sequence.digests)
        known = known[: len(known) // self._unit * self._unit]
        self.cache.hold(known)
        available = self.cache.free_blocks + self.prefixes.unreferenced
        own = count - len(known)
        if own + spare > available:
            self.cache.let_go(known)
            return False
        self.prefixes.make_room(own)
        table = self.cache.allocate(own * BLOCK, likely=sequence.most_tokens - len(known) * BLOCK)
        if known:
            table = BlockTable([*known, *table.blocks], table.promised)
        sequence.table = table
        if sequence.aside is not None:
            self.cache.take_back(sequence.aside, table)
            sequence.aside = None
        else:
            sequence.kept = len(known)
            sequence.read = len(known) * BLOCK
            self.served_tokens += sequence.read
        return True

    def grow(self, sequence: Sequence, tokens: int) -> bool:
        """Give a running sequence blocks for ``tokens`` tokens in all; return whether they were there."""
        table = sequence.table
        while table is not None and table.tokens < tokens:
            self.prefixes.make_room(1)
            if not self.cache.free_blocks:
                return False
            self.cache.grow(table)
        return True

    def keep(self, sequence: Sequence) -> None:
        """Let others have the blocks of a sequence's prompt that were read since."""
        whole = min(sequence.read // BLOCK, len(sequence.digests))
        if sequence.table is not None and whole > sequence.kept:
            self.prefixes.keep(sequence.digests[:whole], sequence.table.blocks[:whole])
            sequence.kept = whole

    def set_aside(self, sequence: Sequence) -> None:
        """Copy a sequence's keys and values to host memory and give its blocks back."""
        if sequence.table is not None:
            sequence.aside = self.cache.set_aside(sequence.table, sequence.read)
            sequence.table = None

    def leave(self, sequence: Sequence) -> None:
        """Give a sequence's blocks back; those of its prompt stay while they are kept."""
        if sequence.table is not None:
            self.cache.release(sequence.table)
            sequence.table = None
        sequence.aside = None
