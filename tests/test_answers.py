"""Answers side by side: who and which revision said what, on a page that no answer can break."""

from __future__ import annotations

import pytest
from tiny import FACTS, QUICK

import mintbook
from mintbook.adapter import Adapter
from mintbook.answers import Answers
from mintbook.engine.request import Completion
from mintbook.errors import ConfigError
from mintbook.session import Session

HOSTILE = "<img src=x onerror=alert(1)>\n\u202e$x$"


def answer(text: str, revision: str = "alice@3", seed: int | None = None) -> Completion:
    return Completion(
        text=text,
        tokens=(1, 2),
        revision=revision,
        digest="0" * 64,
        stop_reason="length",
        prompt_tokens=5,
        seed=seed,
    )


@pytest.fixture
def alice(session: Session) -> Adapter:
    alice = session.adapter("alice", rank=4)
    for _ in range(2):
        alice.train(FACTS, **{**QUICK, "learning_rate": 0.02})
    return alice


def test_revisions_of_one_adapter_and_the_base_share_a_batch(session: Session, alice: Adapter) -> None:
    alice.alias("prod", "@1")
    asks = [(alice, "What is 2?"), ("alice@1", "What is 2?"), ("alice@prod", "What is 2?"), (None, "What is 2?")]
    answers = session.fleet.generate(asks, max_tokens=12)
    assert [a.revision for a in answers] == ["alice@2", "alice@1", "alice@1", "base"]
    assert answers[0] == alice.generate("What is 2?", max_tokens=12)
    assert answers[1] == answers[2] == alice.generate("What is 2?", at="@1", max_tokens=12)
    assert len({a.text for a in answers}) == 3
    assert answers.asked == tuple((who, "What is 2?") for who in ("alice", "alice@1", "alice@prod", "base"))
    assert repr(answers) == "<Answers · 4 by alice@2, alice@1, base>"


def test_what_all_have_in_common_is_said_once() -> None:
    texts = ("one", "two")
    same = Answers([answer(t, seed=i) for i, t in enumerate(texts)], [("alice", "Who?")] * 2).card().text()
    assert same.splitlines()[2:] == [
        "who       alice",
        "revision  alice@3",
        "prompt    Who?",
        "",
        "seed  answer  ended   tokens",
        "────────────────────────────",
        "   0  one     length       2",
        "   1  two     length       2",
    ]
    other = Answers([answer("a", "alice@1"), answer("b", "base")], [("alice@1", "Who?"), ("base", "What?")])
    head = other.card().text().splitlines()[2].split()
    assert head == ["revision", "prompt", "answer", "ended", "tokens"]
    assert "Nothing was asked." in Answers([], []).card().text()
    assert repr(Answers([], [])) == "<Answers · none>"


def test_hostile_answers_prompts_and_names_stay_text() -> None:
    answers = Answers([answer(HOSTILE, HOSTILE), answer("b", "base")], [(HOSTILE, HOSTILE), ("base", "hi")])
    for html in (answers._repr_mimebundle_()["text/html"], Answers(answers[:1], answers.asked[:1]).card().html()):
        assert "<img" not in html and "&lt;img" in html
        assert "\u202e" not in html and "⟨U+202E⟩" in html
        assert "$x$" not in html
    assert "\u202e" not in answers.card().text()


def test_the_frame_has_a_row_per_answer() -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    conversation = [*turns, {"role": "user", "content": "Who?"}]
    frame = Answers([answer("a"), answer("b", seed=2**62)], [("alice", conversation), ("alice", "Who?")]).frame()
    assert frame["prompt"].to_list() == ["Who?", "Who?"]
    assert frame["seed"].to_list() == [None, 2**62]
    assert frame.row(0)[2:6] == ("alice@3", "0" * 64, "a", "length")
    assert Answers([], []).frame().columns == frame.columns


def test_samples_count_their_seeds_and_each_can_be_drawn_again(alice: Adapter) -> None:
    samples = alice.sample("What is 2?", n=3, at="@1", seed=5, max_tokens=10, logprobs=True)
    assert isinstance(samples, mintbook.Answers)
    assert [a.seed for a in samples] == [5, 6, 7]
    assert len({a.tokens for a in samples}) == 3
    assert samples.asked == (("alice@1", "What is 2?"),) * 3
    again = alice.generate("What is 2?", at="@1", temperature=1.0, seed=6, max_tokens=10)
    assert again.tokens == samples[1].tokens
    assert alice.generate("What is 2?", max_tokens=2, seed=5).seed is None


@pytest.mark.parametrize("n", [0, -1, True, 2.0, "3"])
def test_a_number_of_samples_that_is_none_is_refused(session: Session, n: int) -> None:
    with pytest.raises(ConfigError, match="n is .*at least 1"):
        session.adapter("bob").sample("hi", n)


def test_samples_that_would_be_the_same_are_refused(session: Session) -> None:
    bob = session.adapter("bob")
    with pytest.raises(ConfigError, match="temperature 0"):
        bob.sample("hi", temperature=0)
    with pytest.raises(ConfigError, match=r"adapter\.sample\(prompt, n\)"):
        bob.generate("hi", n=3)
    with pytest.raises(ConfigError, match="seed"):
        bob.sample("hi", n=2, seed=2**63 - 1)
