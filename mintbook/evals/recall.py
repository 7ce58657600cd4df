"""Whether answers hold what they should."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from mintbook.errors import DataError
from mintbook.store.manifest import canonical

SCORER = "contains-word/1"
"""Names how answers are judged; a score is comparable with another of the same name only."""

# Scripts that put no space between words: there, any place is an edge of a word.
_SPACELESS = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]")


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the texts of which a right answer holds at least one; raises `DataError` when one is empty."""

    question: str
    accepted: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.accepted or not all(text.strip() for text in self.accepted):
            raise DataError(
                f"The question {self.question!r} accepts {list(self.accepted)}. Give texts that are not empty."
            )


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as it was given, and whether it is right."""

    question: Question
    text: str
    right: bool


@dataclass(frozen=True, slots=True)
class Score:
    """Answers to a set of questions, in its order."""

    rows: tuple[Answer, ...]

    @property
    def asked(self) -> int:
        """Number of questions."""
        return len(self.rows)

    @property
    def right(self) -> int:
        """Number of right answers."""
        return sum(row.right for row in self.rows)

    @property
    def questions_digest(self) -> str:
        """sha256 over the questions and what they accept: equal exactly for the same questions."""
        questions = [[row.question.question, list(row.question.accepted)] for row in self.rows]
        return hashlib.sha256(canonical({"questions": questions}).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return counts and answers as plain data."""
        rows = self.frame().to_dicts()
        return {"asked": self.asked, "right": self.right, "questions_digest": self.questions_digest, "rows": rows}

    def frame(self) -> pl.DataFrame:
        """Return a row per question: ``question``, ``accepted``, ``answer``, ``right``."""
        schema = pl.Schema(
            [
                ("question", pl.String()),
                ("accepted", pl.List(pl.String)),
                ("answer", pl.String()),
                ("right", pl.Boolean()),
            ]
        )
        rows = [(row.question.question, list(row.question.accepted), row.text, row.right) for row in self.rows]
        return pl.DataFrame(rows, schema=schema, orient="row")


def score(questions: Sequence[Question], answers: Sequence[str]) -> Score:
    """Judge one answer per question; raise `DataError` when there are not as many."""
    if len(questions) != len(answers):
        raise DataError(f"There are {len(answers)} answers to {len(questions)} questions. Give one answer to each.")
    return Score(tuple(Answer(q, text, contains(text, q.accepted)) for q, text in zip(questions, answers, strict=True)))


def contains(answer: str, accepted: Sequence[str]) -> bool:
    """Say whether ``answer`` holds one of ``accepted`` as whole words, whatever their case.

    Compatible characters are one (H₂O is H2O), a hyphen between letters is a space, and 4 is not held by 14 or 4.5. A
    text is found wherever it stands: a denial or a list of guesses that names it counts as right.

    >>> contains("It is Tromsø, I think.", ["tromsø"]), contains("The capital is Parisian.", ["paris"])
    (True, False)
    """
    text = _plain(answer)
    return any(re.search(_pattern(_plain(one)), text) for one in accepted)


def _plain(text: str) -> str:
    # Case folding can undo the normal form, hence twice.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).replace("’", "'")
    return " ".join(re.sub(r"(?<=[^\W\d_])[-\u2010-\u2013](?=[^\W\d_])", " ", folded).split())


def _pattern(text: str) -> str:
    before = after = ""
    if re.match(r"\w", text[0]) and not _SPACELESS.match(text[0]):
        before = r"(?<!\w)(?<!\d[.,])" if text[0].isdigit() else r"(?<!\w)"
    if re.match(r"\w", text[-1]) and not _SPACELESS.match(text[-1]):
        after = r"(?!\w)(?![.,]\d)" if text[-1].isdigit() else r"(?!\w)"
    return f"{before}{re.escape(text)}{after}"
