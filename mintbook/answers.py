"""Answers that were asked for together, side by side: several adapters, several revisions, several draws."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

import polars as pl

from mintbook.display import Card, Facts, Table
from mintbook.display.quantity import Value
from mintbook.display.shown import Shown
from mintbook.engine.request import Completion
from mintbook.runtime import Prompt

_SHARED = ("who", "revision", "prompt", "seed")
"""Columns that are said once, above the table, when all rows have the same."""


class Answers(tuple[Completion, ...], Shown):
    """The completions in the order of the asks; ``asked`` has (who, prompt) for each, as they were asked.

    It shows itself as a table of who was asked, which revision answered, what, and why it ended. ``who`` is the
    reference as it was given, ``alice@prod``; ``revision`` is what it meant, ``alice@3``.
    """

    asked: tuple[tuple[str, str], ...]

    def __new__(cls, completions: Iterable[Completion], asked: Sequence[tuple[str, Prompt]]) -> Self:
        """Pair completions with who was asked for them and with what; of a conversation, its last turn is kept."""
        made = super().__new__(cls, completions)
        made.asked = tuple((who, _last_turn(prompt)) for who, prompt in asked)
        return made

    def frame(self) -> pl.DataFrame:
        """Return a row per answer; ``tokens`` counts those of the answer, ``seed`` is null where nothing was drawn."""
        return pl.DataFrame(
            [
                (*asked, a.revision, a.digest, a.text, a.stop_reason, len(a.tokens), a.prompt_tokens, a.seed)
                for asked, a in zip(self.asked, self, strict=True)
            ],
            schema={
                **dict.fromkeys(("who", "prompt", "revision", "digest", "answer", "stop_reason"), pl.String),
                **dict.fromkeys(("tokens", "prompt_tokens", "seed"), pl.Int64),
            },
            orient="row",
        )

    def card(self) -> Card:
        """Return the answers as a table, and above it what all of them have in common."""
        columns: dict[str, list[Value]] = {
            "who": [who for who, _ in self.asked],
            "revision": [answer.revision for answer in self],
            "prompt": [prompt for _, prompt in self.asked],
            "seed": [answer.seed for answer in self],
            "answer": [answer.text for answer in self],
            "ended": [answer.stop_reason for answer in self],
            "tokens": [len(answer.tokens) for answer in self],
        }
        if columns["who"] == columns["revision"]:
            del columns["who"]
        shared = [name for name in _SHARED if len(set(columns.get(name, ()))) == 1]
        common = [(name, value) for name in shared if (value := columns.pop(name)[0]) is not None]
        table = Table(tuple(columns), list(zip(*columns.values(), strict=True)), empty="Nothing was asked.")
        return Card("Answers", f"{len(self)} in one batch", [*([Facts(common)] if common else []), table])

    def __repr__(self) -> str:
        by = ", ".join(dict.fromkeys(answer.revision for answer in self))
        return f"<Answers · {len(self)} by {by}>" if self else "<Answers · none>"


def _last_turn(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
