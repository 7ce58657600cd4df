"""Studies of what an adapter learns and what it costs the base: over seeds, and over successive trainings."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mintbook.display import Table
from mintbook.evals.recall import Question
from mintbook.session import Session
from mintbook.studies.people import Person, load_people, recall_scores
from mintbook.studies.record import write_record

PEOPLE_PROTOCOL = (
    "Per seed, alice and bob are trained with the defaults of TrainConfig and LoraConfig on 12 facts x 4 phrasings, "
    "then asked 2 unseen phrasings per fact, greedily; general questions and prose are mintbook's own. "
    "The seed is that of A's start, of the order of examples and of the anchors."
)
SUCCESSION_PROTOCOL = (
    "Alice's 12 facts in five groups (3, 3, 2, 2, 2), one train call each, continuing from the head with its optimizer "
    "state; after each call the unseen phrasings of every group so far. 'alone': a call sees its own group only; "
    "'repeated': every group so far."
)
GROUPS = ((0, 3), (3, 6), (6, 8), (8, 10), (10, 12))


def study_people(*, seeds: int, out: Path) -> Table:
    """Train alice and bob over seeds; print and write a row each.

    A row has recall, what is kept of the base, perplexity and time.
    """
    people = load_people()
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as store, Session(store=store) as session:
            for name in people:
                rows.append(_train_and_ask(session, people, name, seed))
                write_record(out / "people_recorded.json", protocol=PEOPLE_PROTOCOL, rows=rows)
                print(rows[-1], flush=True)
    columns = tuple(rows[0])
    table = Table(
        columns, [[row[c] for c in columns] for row in rows], caption="Private facts and their cost, over seeds"
    )
    print(table.text(width=120))
    return table


def study_succession(*, seeds: int, out: Path) -> Table:
    """Teach five groups of facts one after the other; print and write the recall of every group after each call."""
    alice = load_people()["alice"]
    rows = [row for seed in range(seeds) for arm in ("alone", "repeated") for row in _succession(alice, arm, seed)]
    write_record(out / "succession_recorded.json", protocol=SUCCESSION_PROTOCOL, rows=rows)
    columns = ("seed", "arm", "call", *(f"group {i + 1}" for i in range(len(GROUPS))))
    table = Table(columns, [[row.get(c) for c in columns] for row in rows], caption="Recall after successive trainings")
    print(table.text(width=120))
    return table


def _train_and_ask(session: Session, people: dict[str, Person], name: str, seed: int) -> dict[str, Any]:
    adapter = session.adapter(name, seed=seed)
    began = time.monotonic()
    run = adapter.train(people[name].examples(), seed=seed)
    seconds = time.monotonic() - began
    scores = recall_scores(session.fleet, people, [None, name])
    evaluation = adapter.evaluate()
    general, prose = evaluation.general, evaluation.prose
    others = [other for other in people if other != name]
    return {
        "seed": seed,
        "person": name,
        "own": scores[name, name].right,
        "asked": scores[name, name].asked,
        "others": sum(scores[name, other].right for other in others),
        "base": sum(scores["base", person].right for person in people),
        "kept": general.kept if general else None,
        "answered_by_base": general.answered if general else None,
        "perplexity_rise": round(prose.share, 4) if prose else None,
        "steps": len(run.metrics),
        "train_s": round(seconds, 1),
    }


def _succession(person: Person, arm: str, seed: int) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as store, Session(store=store) as session:
        adapter = session.adapter(person.name, seed=seed)
        for call, (first, last) in enumerate(GROUPS, start=1):
            start = first if arm == "alone" else 0
            adapter.train(Person(person.name, person.facts[start:last]).examples(), seed=seed + call)
            row: dict[str, Any] = {"seed": seed, "arm": arm, "call": call}
            for number, (a, b) in enumerate(GROUPS[:call], start=1):
                questions: list[Question] = Person(person.name, person.facts[a:b]).questions()
                score = adapter.evaluate({"group": questions}, cost=False).recall["group"]
                row[f"group {number}"] = f"{score.right} of {score.asked}"
            print(row, flush=True)
            yield row
