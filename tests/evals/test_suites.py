from __future__ import annotations

from mintbook.evals.recall import contains
from mintbook.evals.suites import load_general, load_prose


def test_the_general_questions_are_many_and_different() -> None:
    questions = load_general()
    assert len(questions) == 98
    assert len({q.question for q in questions}) == 98
    assert all(contains(f"It is {text}.", q.accepted) for q in questions for text in q.accepted)


def test_the_prose_is_whole_paragraphs() -> None:
    paragraphs = load_prose()
    assert len(paragraphs) == 8
    assert all(len(p) > 200 and "\n" not in p and p == p.strip() and p.endswith(".") for p in paragraphs)
