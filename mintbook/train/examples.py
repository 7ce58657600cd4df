"""Training examples as token sequences, with which tokens are learnt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from mintbook.display import Card, Facts, Table
from mintbook.display.shown import Shown
from mintbook.errors import CorruptStore, DataError
from mintbook.model.renderer import Renderer, Span
from mintbook.store.filesystem import sync_file, sync_folder
from mintbook.store.manifest import canonical
from mintbook.train.rows import ExampleSource as ExampleSource
from mintbook.train.rows import Row, read_rows

FORMAT = "mintbook-examples/1"


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence; ``mask[t]`` says that token t is a target: a part of an answer, its end token among them.

    ``row`` is its place in the data, from 1 (in a file, its line); ``digest`` is the sha256 of its messages.
    """

    tokens: tuple[int, ...]
    mask: tuple[bool, ...]
    row: int = 0
    truncated: bool = False
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Examples:
    """Tokenised training data; ``ignored`` are keys of the rows that had no part in it."""

    sequences: tuple[Example, ...]
    max_length: int
    ignored: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """sha256 over the digests of the examples, in their order."""
        return hashlib.sha256("".join(example.digest for example in self.sequences).encode()).hexdigest()

    def report(self) -> dict[str, Any]:
        """Return what became of the data: counts of examples and tokens, and what was cut or ignored."""
        lengths = [len(example.tokens) for example in self.sequences]
        return {
            "examples": len(self.sequences),
            "tokens": sum(lengths),
            "targets": sum(sum(example.mask) for example in self.sequences),
            "longest": max(lengths, default=0),
            "max_length": self.max_length,
            "truncated": sum(example.truncated for example in self.sequences),
            "ignored": list(self.ignored),
        }

    def save(self, path: Path) -> None:
        """Write the sequences as JSONL, complete under this name or not at all; the first line counts the others."""
        head = {"format": FORMAT, "count": len(self.sequences), "max_length": self.max_length, "ignored": self.ignored}
        beside = path.with_name(f"{path.name}.tmp")
        beside.write_text("".join(f"{canonical(line)}\n" for line in [head, *map(_to_line, self.sequences)]))
        sync_file(beside)
        beside.rename(path)
        sync_folder(path.parent)

    @classmethod
    def load(cls, path: Path) -> Examples:
        """Read what `save` wrote; raise `CorruptStore` when it cannot be read or is not whole."""
        try:
            head, *lines = [json.loads(line) for line in path.read_text().splitlines()]
            if head["format"] != FORMAT or head["count"] != len(lines):
                raise CorruptStore(
                    f"{path} is of format {head['format']!r} with {len(lines)} of {head['count']} examples; this "
                    f"version reads {FORMAT!r}, whole. Train again from the data."
                )
            return cls(tuple(map(_from_line, lines)), head["max_length"], tuple(head["ignored"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptStore(
                f"The examples in {path} cannot be read ({error}). Train again from the data."
            ) from error


def tokenize(source: ExampleSource, renderer: Renderer, max_length: int) -> Examples:
    """Return the examples of ``source`` as sequences of at most ``max_length`` tokens; longer ones lose their end.

    Raises `DataError` with the row's number for a row that cannot be used; so it does for one that the cut would leave
    without a target.
    """
    rows = read_rows(source)
    sequences = tuple(_example(row, renderer, max_length) for row in rows)
    bare = [example.row for example in sequences if not any(example.mask)]
    if bare:
        shown = ", ".join(map(str, bare[:8])) + (f" and {len(bare) - 8} more" if len(bare) > 8 else "")
        raise DataError(
            f"Nothing could be learnt from row {shown}: the prompt alone fills max_length={max_length} tokens. "
            "Raise max_length, shorten the prompt, or leave the row out."
        )
    return Examples(sequences, max_length, tuple(sorted({key for row in rows for key in row.ignored})))


def split(examples: Examples, share: float, seed: int) -> tuple[Examples, Examples]:
    """Return (training, validation) with about ``share`` of the examples held out, both in their order.

    Which ones depends on the seed and on each example's content, so equal examples are never on both sides. Raises
    `DataError` when one side would be empty.
    """
    if not share:
        return examples, replace(examples, sequences=())
    ranked = sorted(
        {e.digest for e in examples.sequences}, key=lambda d: hashlib.sha256(f"{seed} {d}".encode()).digest()
    )
    wanted = max(1, round(share * len(ranked)))
    if wanted >= len(ranked):
        raise DataError(
            f"A validation share of {share:g} of {len(ranked)} different examples leaves none to train on. "
            "Give more examples or a smaller share."
        )
    held = set(ranked[:wanted])
    return (
        replace(examples, sequences=tuple(e for e in examples.sequences if e.digest not in held)),
        replace(examples, sequences=tuple(e for e in examples.sequences if e.digest in held)),
    )


def _example(row: Row, renderer: Renderer, max_length: int) -> Example:
    try:
        spans = _spans(row, renderer)
    except DataError as error:
        raise DataError(f"Row {row.number}: {error}") from error
    # What the template sets after the last answer is seen by no target.
    while spans and not spans[-1].target:
        spans.pop()
    tokens = [token for span in spans for token in span.tokens]
    mask = [span.target for span in spans for _ in span.tokens]
    messages = [{"role": turn.role, "content": turn.content} for turn in row.turns]
    return Example(
        tokens=tuple(tokens[:max_length]),
        mask=tuple(mask[:max_length]),
        row=row.number,
        truncated=len(tokens) > max_length,
        digest=hashlib.sha256(canonical({"messages": messages}).encode()).hexdigest(),
    )


def _spans(row: Row, renderer: Renderer) -> list[Span]:
    if row.pair:
        question, answer = row.turns
        return renderer.completion(question.content, answer.content)
    return renderer.spans(row.turns)


def _runs(mask: Sequence[bool]) -> list[tuple[int, int, bool]]:
    """Return (start, end, is target) of every stretch of equal marks."""
    runs: list[tuple[int, int, bool]] = []
    for target, marks in groupby(mask):
        start = runs[-1][1] if runs else 0
        runs.append((start, start + len(list(marks)), target))
    return runs


def _to_line(example: Example) -> dict[str, Any]:
    return {
        "row": example.row,
        "digest": example.digest,
        "truncated": example.truncated,
        "tokens": example.tokens,
        "targets": [[start, end] for start, end, target in _runs(example.mask) if target],
    }


def _from_line(line: dict[str, Any]) -> Example:
    mask = [False] * len(line["tokens"])
    for start, end in line["targets"]:
        mask[start:end] = [True] * (end - start)
    return Example(tuple(line["tokens"]), tuple(mask), line["row"], line["truncated"], line["digest"])


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of an example as text; ``target`` says that it is learnt."""

    text: str
    tokens: int
    target: bool


@dataclass(frozen=True, slots=True)
class Preview(Shown):
    """The first examples of a data set as the model will see them, and the report of the whole."""

    examples: tuple[tuple[Passage, ...], ...]
    report: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return passages and report as plain data."""
        return asdict(self)

    def card(self) -> Card:
        """Return the report, and every passage with whether it is learnt."""
        facts = {name: ", ".join(value) or None if name == "ignored" else value for name, value in self.report.items()}
        rows = [
            [number, "learnt" if passage.target else "read", passage.tokens, passage.text]
            for number, passages in enumerate(self.examples, start=1)
            for passage in passages
        ]
        table = Table(("example", "is", "tokens", "text"), rows, limit=len(rows))
        return Card("Examples", "as the model will see them", [Facts(list(facts.items())), table])


def preview(examples: Examples, renderer: Renderer, count: int = 3) -> Preview:
    """Return the first ``count`` examples in passages of context and of targets, special tokens written out."""
    shown = []
    for example in examples.sequences[:count]:
        pieces = [(example.tokens[start:end], target) for start, end, target in _runs(example.mask)]
        shown.append(tuple(Passage(renderer.tokenizer.decode(list(t)), len(t), target) for t, target in pieces))
    return Preview(tuple(shown), examples.report())
