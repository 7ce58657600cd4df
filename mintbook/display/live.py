"""A display that changes while something goes on: in a notebook cell, in a terminal, or in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from mintbook.display.card import Card

NOTEBOOK_EVERY_S = 0.7
TERMINAL_EVERY_S = 0.25
LOG_EVERY_S = 10.0
PATIENCE_S = 1.5


class Live:
    """Shows the latest state of one thing in one place.

    In a notebook it is a card that is replaced (and whose last form stays in the file), in a terminal a line that is
    rewritten, elsewhere a line every ten seconds. Nothing is shown for what ends within 1.5 s, save the last card.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._last = 0.0
        self._handle: Any = None
        self._notebook = _in_notebook()
        self._wrote_line = False
        self._passing = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._passing and self._handle is not None:
            self._replace("", "")
        self._end_line()

    def show(self, card: Callable[[], Card], line: Callable[[], str]) -> None:
        """Show the state now, unless it was shown a moment ago."""
        now = time.monotonic()
        every = NOTEBOOK_EVERY_S if self._notebook else TERMINAL_EVERY_S if sys.stderr.isatty() else LOG_EVERY_S
        if now - self._began < PATIENCE_S or now - self._last < every:
            return
        self._last = now
        if self._notebook:
            self._replace(card().html(), card().text())
        elif sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[2K{line()[:100]}")
            sys.stderr.flush()
            self._wrote_line = True
        else:
            sys.stderr.write(f"{line()}\n")

    def line(self, what: str, share: float | None = None) -> None:
        """Show one line of text, with a percentage where a share of the work is known; it goes when the block ends."""
        text = what if share is None else f"{what}: {share:.0%}"
        self._passing = True
        self.show(lambda: Card(text), lambda: text)

    def close(self, card: Callable[[], Card], line: Callable[[], str]) -> None:
        """Show the last state, which stays."""
        if self._notebook and self._handle is not None:
            self._replace(card().html(), card().text())
        self._end_line()

    @property
    def left_a_card(self) -> bool:
        """Whether a card stays in the notebook when the block has ended."""
        return self._handle is not None and not self._passing

    def _replace(self, html: str, text: str) -> None:
        from IPython.display import display

        bundle = {"text/html": html, "text/plain": text}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)

    def _end_line(self) -> None:
        if self._wrote_line:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
            self._wrote_line = False


def cell_number() -> int | None:
    """Return the number of the notebook cell that runs now, or ``None`` outside a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell.execution_count if shell is not None and getattr(shell, "kernel", None) is not None else None


def _in_notebook() -> bool:
    return cell_number() is not None
