"""The beginnings of prompts that were read, kept for other prompts of the same weights that begin alike."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

from mintbook.model.kv_cache import BLOCK, KVCache


def prefix_digests(key: str, tokens: Sequence[int]) -> tuple[bytes, ...]:
    """Return a digest of every whole block of a prompt with all before it: ``dᵢ = H(dᵢ₋₁ ‖ tokens of block i)``.

    ``d₋₁`` is the digest of ``key``, which names the weights by content. At least one token stays outside, because
    somebody has to compute what follows the prompt. An empty key gives nothing.
    """
    if not key:
        return ()
    digests, digest = [], blake2b(key.encode(), digest_size=32).digest()
    for start in range(0, len(tokens) - BLOCK, BLOCK):
        digest = blake2b(digest + array("q", tokens[start : start + BLOCK]).tobytes(), digest_size=32).digest()
        digests.append(digest)
    return tuple(digests)


class PrefixCache:
    """Blocks of read prompts by their digest; it holds each once, and lets go of the longest unused for room."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._blocks: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def unreferenced(self) -> int:
        """Blocks that nobody but this cache holds; any thread may ask."""
        return sum(self._cache.holders(block) == 1 for block in list(self._blocks.values()))

    def find(self, digests: Sequence[bytes]) -> list[int]:
        """Return the blocks of the longest beginning that is kept, and count them as used."""
        found = []
        for digest in digests:
            block = self._blocks.get(digest)
            if block is None:
                break
            found.append(block)
        # The first block last: what a longer prompt needs first is given up last.
        for digest in reversed(digests[: len(found)]):
            self._blocks.move_to_end(digest)
        return found

    def keep(self, digests: Sequence[bytes], blocks: Sequence[int]) -> None:
        """Keep the blocks of a prompt's beginning that was read; one that has its equal here already is left out."""
        for digest, block in zip(digests, blocks, strict=True):
            if digest not in self._blocks:
                self._cache.hold([block])
                self._blocks[digest] = block
        self.find(digests)

    def make_room(self, blocks: int) -> None:
        """Let go of unreferenced blocks, the longest unused first, until ``blocks`` are free or none is left."""
        if self._cache.free_blocks >= blocks:
            return
        for digest, block in list(self._blocks.items()):
            if self._cache.holders(block) == 1:
                del self._blocks[digest]
                self._cache.let_go([block])
                if self._cache.free_blocks >= blocks:
                    return
