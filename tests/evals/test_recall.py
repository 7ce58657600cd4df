from __future__ import annotations

import json

import pytest

from mintbook.errors import DataError
from mintbook.evals.recall import Question, contains, score


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        ("The capital is PARIS.", "paris"),
        ("It is Tromsø!", "TROMSØ"),
        ("It is Tromsø.", "Tromsø"),
        ("Zürich", "Zu\u0308rich"),
        ("DIE STRASSE", "Straße"),
        ("İstanbul", "i̇stanbul"),
        ("Water is H₂O.", "h2o"),
        ("It was O’Brien", "O'Brien"),
        ("Twenty four hours", "twenty-four"),
        ("twenty-four", "twenty four"),
        ("You live on Larkspur\n  Lane", "Larkspur Lane"),
        ("0°C", "0"),
        ("2 + 2 = 4.", "4"),
        ("4, of course", "4"),
        ("It costs US$5.", "$5"),
        ("C++ is it", "c++"),
        ("日本の首都は東京都です", "東京"),
        ("neither x nor paris", "paris"),
    ],
)
def test_a_right_answer_is_found(answer: str, accepted: str) -> None:
    assert contains(answer, [accepted])
    assert contains(answer, ["something else", accepted])


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        ("", "paris"),
        ("Parisian life", "paris"),
        ("comparison", "paris"),
        ("Tromsøya", "Tromsø"),
        ("Tromso", "Tromsø"),
        ("14", "4"),
        ("4.5", "4"),
        ("1,004", "4"),
        ("3.4", "4"),
        ("4th", "4"),
        ("Larkspur and a Lane", "Larkspur Lane"),
        ("a.b", "a+b"),
        ("snake_case", "snake"),
    ],
)
def test_a_wrong_answer_is_not(answer: str, accepted: str) -> None:
    assert not contains(answer, [accepted])


QUESTIONS = [Question("Dog?", ("Rex",)), Question("Street?", ("Elm Road", "Elm Rd"))]


def test_a_score_counts_and_keeps_every_answer() -> None:
    found = score(QUESTIONS, ["It is Rex.", "Oak Road"])
    assert (found.asked, found.right) == (2, 1)
    assert found.frame().rows() == [
        ("Dog?", ["Rex"], "It is Rex.", True),
        ("Street?", ["Elm Road", "Elm Rd"], "Oak Road", False),
    ]
    data = json.loads(json.dumps(found.to_dict()))
    assert data["rows"][1]["answer"] == "Oak Road"
    assert (data["asked"], data["right"]) == (2, 1)
    assert score([], []).frame().schema == found.frame().schema


def test_the_digest_names_the_questions_not_the_answers() -> None:
    first = score(QUESTIONS, ["a", "b"]).questions_digest
    assert first == score(QUESTIONS, ["Rex", "Elm Rd"]).questions_digest
    others = ([*QUESTIONS, QUESTIONS[0]], QUESTIONS[::-1], [Question("Dog?", ("Rex", "Max")), QUESTIONS[1]])
    assert len({first, *(score(q, ["x"] * len(q)).questions_digest for q in others)}) == 4


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(DataError, match="1 answers to 2 questions"):
        score(QUESTIONS, ["a"])
    for accepted in ((), ("a", " ")):
        with pytest.raises(DataError, match="Give texts that are not empty"):
            Question("Dog?", accepted)
