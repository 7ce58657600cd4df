"""From tokens to text as they come, with stop texts found and never shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNFINISHED = "�"
WINDOW = 6


class Detokenizer:
    """Turns an answer's tokens into text, one token at a time.

    Text is released only when it can no longer change: a token may be half a character, and text that could be the
    beginning of a stop text waits until it is or is not one.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._tokens: list[int] = []
        self._settled = 0
        self._text = ""
        self._released = 0
        self.stopped = False

    @property
    def text(self) -> str:
        """The text released so far."""
        return self._text[: self._released]

    def add(self, token: int) -> str:
        """Take one token and return the text that became certain; sets ``stopped`` when a stop text appeared."""
        self._tokens.append(token)
        start = max(0, self._settled - WINDOW)
        known = self._decode(self._tokens[start : self._settled])
        grown = self._decode(self._tokens[start:])
        if grown.endswith(UNFINISHED) and len(self._tokens) - self._settled < WINDOW:
            return ""
        self._text += grown[len(known) :]
        self._settled = len(self._tokens)
        ends = [at for text in self._stop if (at := self._text.find(text, max(0, self._released - len(text)))) >= 0]
        if ends:
            self.stopped = True
            self._text = self._text[: min(ends)]
        return self._release(len(self._text) - (0 if self.stopped else self._waiting()))

    def finish(self) -> str:
        """Return what was still held back; call it once, when no token follows."""
        if not self.stopped and self._settled < len(self._tokens):
            start = max(0, self._settled - WINDOW)
            known = self._decode(self._tokens[start : self._settled])
            self._text += self._decode(self._tokens[start:])[len(known) :]
            self._settled = len(self._tokens)
        return self._release(len(self._text))

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _release(self, until: int) -> str:
        new = self._text[self._released : until]
        self._released = max(self._released, until)
        return new

    def _waiting(self) -> int:
        """Return how many characters at the end may be the beginning of a stop text."""
        return max((n for text in self._stop for n in range(1, len(text)) if self._text.endswith(text[:n])), default=0)
