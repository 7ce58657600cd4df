"""From whatever a user's examples are in to checked rows, one conversation each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from mintbook.errors import DataError, nearest
from mintbook.model.renderer import Turn, checked_turns

ExampleSource = str | Path | pl.DataFrame | Iterable[Mapping[str, Any] | Sequence[str]]
"""A JSONL file, a polars frame, or anything that iterates over rows, such as a list or a ``datasets.Dataset``."""

PROMPTS = ("prompt", "question")
ANSWERS = ("completion", "answer", "response")
SHAPES = (
    'A row is {"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}]}, '
    'or {"prompt": …, "completion": …}, or a pair (question, answer).'
)


@dataclass(frozen=True, slots=True)
class Row:
    """One example as it was given: its place counted from 1 (in a file, its line), and its turns.

    ``pair`` says that it came as a question and an answer rather than as messages; ``ignored`` are its other keys.
    """

    number: int
    turns: tuple[Turn, ...]
    pair: bool
    ignored: tuple[str, ...] = ()


def read_rows(source: ExampleSource) -> list[Row]:
    """Return every example of ``source``; raise `DataError` that names the first row that cannot be used, and why."""
    rows: list[Row] = []
    word = "Line" if isinstance(source, (str, Path)) else "Row"
    for number, row in _numbered(source):
        try:
            rows.append(_checked(number, row))
        except DataError as error:
            raise DataError(f"{word} {number}: {error}") from error
    if not rows:
        where = f"The file {source}" if isinstance(source, (str, Path)) else "The data"
        raise DataError(f"{where} has no examples. {SHAPES}")
    return rows


def _numbered(source: ExampleSource) -> Iterator[tuple[int, Any]]:
    if isinstance(source, (str, Path)):
        return _lines(Path(source))
    if isinstance(source, pl.DataFrame):
        return enumerate(source.iter_rows(named=True), start=1)
    if isinstance(source, Mapping):
        keys = ", ".join(map(repr, list(source)[:4]))
        raise DataError(f"The data is one dict with {keys}. Give a list of rows, or one split of a data set. {SHAPES}")
    if not isinstance(source, Iterable):
        raise DataError(
            f"The data is a {type(source).__name__}. Give a list, a JSONL file, a polars frame or a data set."
        )
    return enumerate(source, start=1)


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    if not path.expanduser().is_file():
        raise DataError(
            f"There is no file {str(path)!r}. Text as data is the path of a JSONL file; examples go in a list."
        )
    # As bytes, because text would also be split at U+2028, which a JSON string may hold.
    for number, line in enumerate(path.expanduser().read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line.decode("utf-8-sig"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(
                f"Line {number} of {path} is not JSON in UTF-8 ({error}). A JSONL file has one row per line."
            ) from error


def _checked(number: int, row: Any) -> Row:
    if isinstance(row, Mapping):
        present = {str(key): value for key, value in row.items() if value is not None}
        return _from_messages(number, present) if "messages" in present else _from_columns(number, present)
    if isinstance(row, Sequence) and not isinstance(row, (str, bytes)) and len(row) == 2:
        return Row(number, _pair(*row), pair=True)
    shown = repr(row) if len(repr(row)) <= 60 else f"{repr(row)[:57]}…"
    raise DataError(f"it is {shown}. {SHAPES}")


def _from_messages(number: int, row: Mapping[str, Any]) -> Row:
    twice = [name for name in (*PROMPTS, *ANSWERS) if name in row]
    if twice:
        raise DataError(f"it has 'messages' and also {twice[0]!r}. Keep one of the two.")
    messages = row["messages"]
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
        raise DataError(f"'messages' is a {type(messages).__name__}; it must be a list of dicts with role and content.")
    turns = checked_turns(messages)
    if turns[-1].role != "assistant":
        raise DataError(
            f"the conversation ends with a {turns[-1].role} message, from which nothing is learnt. "
            "End it with the assistant's message."
        )
    return Row(number, turns, pair=False, ignored=tuple(sorted(row.keys() - {"messages"})))


def _from_columns(number: int, row: Mapping[str, Any]) -> Row:
    prompts = [name for name in PROMPTS if name in row]
    answers = [name for name in ANSWERS if name in row]
    if len(prompts) != 1 or len(answers) != 1:
        found = ", ".join(map(repr, sorted(row))) or "nothing"
        known = ("messages", *PROMPTS, *ANSWERS)
        hints = [hint for name in sorted(row.keys() - set(known)) if (hint := nearest(name, known, limit=1))]
        raise DataError(f"it has {found}.{''.join(hints)} {SHAPES}")
    ignored = tuple(sorted(row.keys() - {prompts[0], answers[0]}))
    return Row(number, _pair(row[prompts[0]], row[answers[0]]), pair=True, ignored=ignored)


def _pair(question: Any, answer: Any) -> tuple[Turn, ...]:
    for what, text in (("question", question), ("answer", answer)):
        if not isinstance(text, str):
            raise DataError(f"the {what} is a {type(text).__name__}; it must be text.")
    return checked_turns([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
