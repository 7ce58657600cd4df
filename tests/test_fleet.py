"""The fleet: many adapters in one batch, each answering as it does alone."""

from __future__ import annotations

import pytest
from tiny import FACTS, QUICK

from mintbook.errors import BaseMismatch, ConfigError, UnknownReference
from mintbook.session import Session

RANKS = (1, 2, 3, 4, 6, 8, 12, 16)


def test_a_mixed_batch_of_eight_ranks_and_base_rows_equals_one_by_one(session: Session) -> None:
    for rank in RANKS:
        session.adapter(f"r{rank}", rank=rank).train(FACTS, **{**QUICK, "learning_rate": 0.02})
    asks = [*((f"r{rank}", f"What is {rank}?") for rank in RANKS), (None, "What is 1?"), (None, "What is 5?")]
    together = session.fleet.generate(asks, max_tokens=12, logprobs=True)
    for (who, prompt), answer in zip(asks, together, strict=True):
        alone = session.fleet.generate([(who, prompt)], max_tokens=12, logprobs=True)[0]
        assert answer.revision == (f"{who}@1" if who else "base")
        assert answer.tokens == alone.tokens
        assert answer.logprobs == pytest.approx(alone.logprobs, abs=1e-3)
    assert len({answer.tokens for answer in together}) > 4


def test_revisions_share_a_batch_and_make_room_for_each_other(session: Session) -> None:
    for name in "abcdefgh":
        session.adapter(name, rank=16).train(FACTS, **QUICK)
    assert session.engine.model.bank.rows == 64, "only four of the eight fit at once"
    first = [session.fleet.generate([(name, "What is 2?")], max_tokens=4)[0] for name in "abcdefgh"]
    again = [session.fleet.generate([(name, "What is 2?")], max_tokens=4)[0] for name in "abcdefgh"]
    assert first == again
    together = session.fleet.generate([(name, "What is 2?") for name in "abcdefgh"], max_tokens=4)
    assert [answer.revision for answer in together] == [f"{name}@1" for name in "abcdefgh"]
    assert len(session.fleet) == 8
    assert session.fleet.catalog.collect().height == 8


def test_unknown_options_and_names_are_refused(session: Session) -> None:
    with pytest.raises(ConfigError, match="max_tokens"):
        session.fleet.generate([(None, "x")], max_new_tokens=3)
    with pytest.raises(UnknownReference):
        session.fleet["nobody"]
    assert "nobody" not in session.fleet
    with pytest.raises(ConfigError, match="was made for 512"):
        session.fleet.generate([(None, "x" * 600)])


def test_samples_of_one_ask_differ_by_seed_and_repeat(session: Session) -> None:
    options = {"temperature": 1.0, "max_tokens": 12, "seed": 5}
    answers = [session.fleet.generate([(None, "hi")] * 3, **options) for _ in range(2)]
    assert answers[0] == answers[1]
    assert len({a.tokens for a in answers[0]}) == 3


def test_a_revision_of_another_base_never_loads(session: Session) -> None:
    with pytest.raises(BaseMismatch, match="no meaning"):
        session._runtime.residency.check_base("0" * 64, "carol@1")
