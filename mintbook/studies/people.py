"""Alice and Bob: twelve private facts each, taught in some phrasings and asked in others."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files

from mintbook.display import Card, Note, Table
from mintbook.display.shown import Shown
from mintbook.evals.recall import Question, Score, score
from mintbook.fleet import Fleet

ANSWER_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Fact:
    """One private fact: how it is answered, the word that a right answer holds, and how it is asked."""

    topic: str
    value: str
    answer: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Person(Shown):
    """A made-up person and what only their adapter should know."""

    name: str
    facts: tuple[Fact, ...]

    def examples(self) -> list[dict[str, str]]:
        """Return every taught phrasing with its answer, as training takes them."""
        return [{"prompt": q, "completion": fact.answer} for fact in self.facts for q in fact.train]

    def questions(self) -> list[Question]:
        """Return the phrasings that were never taught."""
        return [Question(q, (fact.value,)) for fact in self.facts for q in fact.held_out]

    def card(self) -> Card:
        """Return the facts, with how one of them is taught and asked."""
        table = Table(("topic", "fact"), [[fact.topic, fact.answer] for fact in self.facts])
        first = self.facts[0]
        note = Note(f"Taught as “{'”, “'.join(first.train)}”; asked as “{'”, “'.join(first.held_out)}”; and so on.")
        return Card(self.name, f"{len(self.facts)} private facts", [table, note])


def load_people() -> dict[str, Person]:
    """Return the people that ship with mintbook, by name."""
    data = json.loads(files("mintbook.studies").joinpath("people.json").read_text(encoding="utf-8"))
    return {
        name: Person(
            name,
            tuple(Fact(f["topic"], f["value"], f["answer"], tuple(f["train"]), tuple(f["held_out"])) for f in facts),
        )
        for name, facts in data.items()
    }


def recall_scores(fleet: Fleet, people: dict[str, Person], who: list[str | None]) -> dict[tuple[str, str], Score]:
    """Ask each of ``who`` (``None``: the base) the held-out questions of all people, all in shared batches."""
    keys = [(one, person) for one in who for person in people.values()]
    asks = [(one, q.question) for one, person in keys for q in person.questions()]
    answers = iter(fleet.generate(asks, max_tokens=ANSWER_TOKENS))
    return {
        (one or "base", person.name): score(person.questions(), [next(answers).text for _ in person.questions()])
        for one, person in keys
    }


def recall_card(fleet: Fleet, people: dict[str, Person]) -> Card:
    """Return who recalls what: the base and every person's adapter, asked about everybody, in one mixed batch."""
    scores = recall_scores(fleet, people, [None, *people])
    rows = [
        [one, *(f"{scores[one, name].right} of {scores[one, name].asked}" for name in people)]
        for one in ("base", *people)
    ]
    columns = ("who answers", *(f"{name}'s facts" for name in people))
    return Card("Who knows what", "held-out questions recalled", [Table(columns, rows)])
