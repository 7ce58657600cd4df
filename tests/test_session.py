"""Sessions: one resident base, records that cannot be mistaken, refusals that change nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import FACTS, QUICK

from mintbook.errors import (
    BaseMismatch,
    BaseUnavailable,
    BaseUnsupported,
    ConfigError,
    InvalidReference,
    TargetError,
    UnknownReference,
)
from mintbook.model.tiny_base import write_tiny_base
from mintbook.session import Session


def test_a_second_session_reuses_the_resident_base(open_session: Callable[..., Session], tmp_path: Path) -> None:
    first, second = open_session(), open_session(store=tmp_path / "other")
    assert second.base is first.base
    assert second.engine is first.engine
    second.close()
    first.adapter("alice").train(FACTS, **QUICK)
    first.close()
    third = open_session()
    assert third.base is not first.base


def test_an_adapter_is_got_or_created_and_never_reshaped(session: Session) -> None:
    assert (
        session.adapter("alice", rank=4).record
        == session.adapter("alice").record
        == session.adapter("alice", rank=4).record
    )
    with pytest.raises(ConfigError, match="rank=4"):
        session.adapter("alice", rank=8)
    with pytest.raises(ConfigError, match="Nearest: 'rank'"):
        session.adapter("bob", rnk=8)
    with pytest.raises(TargetError, match="q_proj"):
        session.adapter("bob", targets="q_prj")
    with pytest.raises(ConfigError, match="at most 256"):
        session.adapter("bob", rank=0)
    with pytest.raises(InvalidReference):
        session.adapter("bad name/../x")
    assert [a.name for a in session.fleet] == ["alice"]


def test_an_untrained_adapter_never_answers_as_the_base(session: Session) -> None:
    alice = session.adapter("alice")
    for ask in (
        lambda: alice.generate("hi"),
        lambda: alice.stream("hi"),
        alice.diff,
        alice.evaluate,
        lambda: session.fleet.generate([("alice", "hi")]),
        lambda: session.fleet.generate([("alice@1", "hi")]),
    ):
        with pytest.raises(UnknownReference, match="alice"):
            ask()
    with pytest.raises(UnknownReference, match="Nearest: 'alice'"):
        session.fleet.generate([(None, "hi"), ("alise", "hi")])


def test_another_base_is_refused_by_name(open_session: Callable[..., Session], tmp_path: Path) -> None:
    first = open_session()
    first.adapter("alice", rank=4).train(FACTS, **QUICK)
    other = open_session(base=write_tiny_base(tmp_path / "other", seed=1))
    assert other.base.digest != first.base.digest
    with pytest.raises(BaseMismatch, match=first.base.digest[:12]):
        other.adapter("alice")
    with pytest.raises(BaseMismatch, match="alice@1"):
        other.fleet.generate([("alice", "hi")])
    for act in (
        lambda: other.fleet["alice"].train(FACTS, **QUICK),
        lambda: other.fleet["alice"].export(tmp_path / "x"),
    ):
        with pytest.raises(BaseMismatch):
            act()
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_other_architectures_run(open_session: Callable[..., Session], tmp_path: Path, architecture: str) -> None:
    session = open_session(base=write_tiny_base(tmp_path / architecture, architecture=architecture))
    alice = session.adapter("alice", rank=2)
    alice.train(FACTS, **QUICK)
    assert alice.generate("hi", max_tokens=3).revision == "alice@1"


@pytest.mark.parametrize(
    ("architecture", "reason"), [("mistral", "sliding"), ("gemma2", "soft|sliding"), ("gpt_oss", "sinks|sliding")]
)
def test_a_base_that_the_packed_forward_cannot_run_is_refused_with_the_reason(
    open_session: Callable[..., Session], tmp_path: Path, architecture: str, reason: str
) -> None:
    with pytest.raises(BaseUnsupported, match=reason):
        open_session(base=write_tiny_base(tmp_path / architecture, architecture=architecture))


def test_a_base_that_is_not_there_is_said_so(open_session: Callable[..., Session], tmp_path: Path) -> None:
    with pytest.raises(BaseUnavailable, match="nowhere"):
        open_session(base=tmp_path / "nowhere")
    with pytest.raises(BaseUnavailable, match=r"config\.json"):
        open_session(base=tmp_path)
    with pytest.raises(BaseUnavailable, match="hub"):
        open_session(base="someone/no-such-model")
    with pytest.raises(ConfigError, match="dtype"):
        open_session(dtype="int3")
    with pytest.raises(ConfigError, match="CUDA"):
        open_session(device="cuda")


def test_room_that_is_asked_for_is_given_or_refused(
    open_session: Callable[..., Session], tiny_base_folder: Path, tmp_path: Path
) -> None:
    open_session(slot_rows=64)
    with pytest.raises(ConfigError, match="slot_rows is 128, and tiny is resident with 64"):
        open_session(slot_rows=128)
    with pytest.raises(ConfigError, match="kv_tokens"):
        open_session(kv_tokens=4096)
    with Session(tiny_base_folder, store=tmp_path / "store", dtype="float32") as same:
        assert same.engine.model.bank.rows == 64


def test_an_unknown_option_is_refused_before_anything_is_opened(
    open_session: Callable[..., Session], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="Nearest: 'slot_rows'"):
        open_session(store=tmp_path / "new", slot_row=64)
    assert not (tmp_path / "new").exists()


def test_no_room_at_all_is_refused(open_session: Callable[..., Session]) -> None:
    with pytest.raises(ConfigError, match="slot_rows is 0"):
        open_session(slot_rows=0)


def test_room_need_not_be_a_multiple_of_a_block(open_session: Callable[..., Session]) -> None:
    assert open_session(kv_tokens=1000).engine.cache.capacity_tokens == 992
    open_session(kv_tokens=1000)


def test_a_folder_that_was_rebuilt_is_not_served_from_memory(
    open_session: Callable[..., Session], tmp_path: Path
) -> None:
    first = open_session(base=write_tiny_base(tmp_path / "base", seed=0))
    digest = first.base.digest
    shutil.rmtree(tmp_path / "base")
    write_tiny_base(tmp_path / "base", seed=1)
    with pytest.raises(ConfigError, match="have changed"):
        open_session(base=tmp_path / "base")
    first.close()
    assert open_session(base=tmp_path / "base").base.digest != digest


def test_closing_stops_what_runs_and_leaves_the_record_free(open_session: Callable[..., Session]) -> None:
    first = open_session()
    run = first.adapter("alice", rank=4).train(FACTS, background=True, **{**QUICK, "steps": 5000})
    first.close()
    assert run.status == "stopped"
    second = open_session()
    resumed = second.adapter("alice").resume(background=True)
    assert resumed.status == "running"
    resumed.end()


def test_an_adapter_keeps_its_base_open(open_session: Callable[..., Session]) -> None:
    alice = open_session().adapter("alice", rank=4)
    with open_session():
        pass
    alice.train(FACTS, **QUICK)
    assert alice.generate("hi", max_tokens=2).revision == "alice@1"


def test_a_record_that_no_training_could_fill_is_not_made(session: Session) -> None:
    with pytest.raises(ConfigError, match="orthonormal"):
        session.adapter("big", rank=65)
    with pytest.raises(ConfigError, match="slot_rows"):
        session.adapter("big", rank=65, init="peft")
    with pytest.raises(ConfigError, match="seed"):
        session.adapter("big", seed="abc")
    assert len(session.fleet) == 0


def test_displays_say_what_is_there(session: Session) -> None:
    assert "tiny" in repr(session)
    assert "no adapters yet" in session.fleet.card().text()
    session.adapter("alice", rank=4).train(FACTS, **QUICK)
    for noun in (session, session.base, session.fleet, session.fleet["alice"], session.fleet["alice"].revisions[0]):
        bundle = noun._repr_mimebundle_()
        assert bundle["text/html"].startswith("<")
        assert noun.card().title in bundle["text/plain"]
        assert "\n" not in repr(noun)
        assert len(repr(noun)) < 160


def test_metrics_count_what_was_asked(session: Session) -> None:
    alice = session.adapter("alice", rank=4)
    alice.train(FACTS, **QUICK)
    tokens = len(alice.generate("hi", max_tokens=3).tokens)
    lines = session.metrics().splitlines()
    assert f"mintbook_generated_tokens_total {tokens}" in lines
    assert "mintbook_adapters_hot 1" in lines
    assert 'mintbook_adapter_hits_total{tier="slot"} 1' in lines
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    assert "0 running" in session.card().text()
