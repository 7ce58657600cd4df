"""Adapters: training that continues, refuses and resumes; answers that say where they come from."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from tiny import FACTS, QUICK

from mintbook.adapter import Adapter
from mintbook.errors import ConfigError, DataError, RecordLeased, RunFailed, RunStopped, UnknownReference
from mintbook.session import Session


@pytest.fixture
def alice(session: Session) -> Adapter:
    return session.adapter("alice", rank=4)


def test_training_ends_in_a_revision_that_says_how_it_came_to_be(session: Session, alice: Adapter) -> None:
    run = alice.train(FACTS, **QUICK)
    revision = run.result()
    manifest = revision.manifest
    assert revision.reference == "alice@1"
    assert run.status == "done"
    assert [entry["step"] for entry in run.metrics] == [1, 2, 3, 4]
    assert run.metrics[-1]["loss"] < run.metrics[0]["loss"]
    assert (manifest.base_digest, manifest.rank, manifest.data_count) == (session.base.digest, 4, 12)
    assert manifest.train is not None
    assert manifest.train["learning_rate"] == 5e-3
    assert manifest.receipt["modules"] == 14
    assert manifest.receipt["nonzero_b"] > 0.9
    assert manifest.receipt["logit_shift"] > 0
    assert session.store.verify(revision) == []


def test_a_second_training_continues_from_the_head_with_its_moments(
    open_session: Callable[..., Session], tmp_path: Path
) -> None:
    session = open_session()
    options = {**QUICK, "schedule": "constant", "warmup": 0.0, "batch_size": 12}
    twice, once = session.adapter("twice", rank=4), session.adapter("once", rank=4)
    twice.train(FACTS, **options)
    twice.train(FACTS, **options)
    once.train(FACTS, **{**options, "steps": 8})
    pages = [session.store.page(a.revision()).tensor for a in (twice, once)]
    torch.testing.assert_close(pages[0], pages[1], rtol=2e-3, atol=2e-5)
    assert twice.revision("@2").manifest.parent == twice.revision("@1").digest
    fresh = session.adapter("fresh", rank=4)
    fresh.train(FACTS, **{**options, "steps": 4})
    assert (session.store.page(fresh.revision()).tensor - pages[1]).abs().max() > 1e-2


@pytest.mark.parametrize("form", ["pairs", "dicts", "messages", "jsonl", "polars"])
def test_every_form_of_examples_trains_the_same_revision(session: Session, tmp_path: Path, form: str) -> None:
    dicts = [{"prompt": q, "completion": a} for q, a in FACTS]
    messages = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in FACTS]
    file = tmp_path / "facts.jsonl"
    file.write_text("".join(json.dumps(entry) + "\n" for entry in dicts))
    forms = {"pairs": FACTS, "dicts": dicts, "messages": messages, "jsonl": file, "polars": pl.DataFrame(dicts)}
    reference, other = session.adapter("reference", rank=2), session.adapter("other", rank=2)
    reference.train(FACTS, **QUICK)
    other.train(forms[form], **QUICK)
    assert other.revision().weights_digest == reference.revision().weights_digest


def test_bad_input_is_refused_before_anything_is_kept(session: Session, alice: Adapter) -> None:
    with pytest.raises(DataError, match="Row 2"):
        alice.train([*FACTS[:1], {"prompt": "x"}], **QUICK)
    with pytest.raises(DataError):
        alice.train([], **QUICK)
    with pytest.raises(ConfigError, match="Nearest: 'learning_rate'"):
        alice.train(FACTS, learning_rat=1)
    with pytest.raises(ConfigError, match="no option 'max_token'"):
        alice.train(FACTS, max_token=3)
    assert alice.head is None
    assert session.store.runs(record="alice") == []


def test_one_training_at_a_time(alice: Adapter) -> None:
    run = alice.train(FACTS, background=True, **{**QUICK, "steps": 200})
    with pytest.raises(RecordLeased, match="alice"):
        alice.train(FACTS, **QUICK)
    run.stop()
    with pytest.raises(RunStopped, match="resume"):
        run.result()
    assert run.status == "stopped"
    assert alice.head is None


def test_a_stopped_training_resumes_with_the_same_losses(session: Session, alice: Adapter) -> None:
    options = {**QUICK, "steps": 30, "checkpoint_every": 1}
    whole = session.adapter("whole", rank=4).train(FACTS, **options)
    run = alice.train(FACTS, background=True, **options)
    while len(run.metrics) < 5:
        assert run.status == "running"
    run.stop()
    with pytest.raises(RunStopped):
        run.result()
    resumed = alice.resume()
    losses = [[entry["loss"] for entry in r.metrics] for r in (whole, resumed)]
    assert losses[0] == losses[1]
    assert alice.revision().weights_digest == session.fleet["whole"].revision().weights_digest
    with pytest.raises(UnknownReference, match="no training to resume"):
        alice.resume()


def test_a_run_that_died_after_its_commit_is_not_made_twice(session: Session, alice: Adapter) -> None:
    run = alice.train(FACTS, **QUICK)
    session.store.update_run(run.id, status="failed")
    resumed = alice.resume()
    assert resumed.result() == run.result()
    assert [r.number for r in alice.revisions] == [1]
    row = session.store.run(run.id)
    assert (row.status, row.result) == ("done", {"revision": "alice@1"})
    assert {path.name for path in session.store.run_folder(run.id).iterdir()} == {"events.jsonl", "examples.jsonl"}
    alice.train(FACTS, **QUICK)


def test_early_stopping_says_which_step_it_kept(session: Session, alice: Adapter) -> None:
    options = {**QUICK, "steps": 200, "learning_rate": 0.1, "validation": 0.3, "validate_every": 2, "patience": 2}
    run = alice.train(FACTS, **options)
    judged = {e["step"]: e["validation"] for e in run.metrics if "validation" in e}
    best = min(judged, key=lambda step: judged[step])
    metrics = alice.revision().manifest.metrics
    assert (metrics["step"], metrics["validation"]) == (best, judged[best])
    assert best < run.metrics[-1]["step"]
    alice.train(FACTS, **QUICK)


def test_the_parent_is_read_under_the_lease(
    open_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    session, other = open_session(), open_session()
    alice = session.adapter("alice", rank=4)
    tokenize = Adapter.examples

    def meanwhile(self: Adapter, source: object, **options: object) -> object:
        monkeypatch.setattr(Adapter, "examples", tokenize)
        other.adapter("alice").train(FACTS, **QUICK)
        return tokenize(self, source, **options)

    monkeypatch.setattr(Adapter, "examples", meanwhile)
    alice.train(FACTS, **QUICK)
    assert alice.revision("@2").manifest.parent == alice.revision("@1").digest


def test_a_resume_never_revives_what_was_rolled_back(session: Session, alice: Adapter) -> None:
    alice.train(FACTS, **QUICK)
    alice.train(FACTS, **QUICK)
    run = alice.train(FACTS, background=True, **{**QUICK, "steps": 500})
    run.end()
    alice.rollback()
    with pytest.raises(ConfigError, match="head"):
        alice.resume()
    alice.rollback("@2")
    resumed = alice.resume(background=True)
    resumed.end()


def test_a_resume_keeps_the_precision_it_began_with(open_session: Callable[..., Session]) -> None:
    alice = open_session().adapter("alice", rank=4)
    alice.train(FACTS, background=True, **{**QUICK, "steps": 500}).end()
    with pytest.raises(ConfigError, match="dtype='float32'"):
        open_session(dtype="bfloat16").adapter("alice").resume()


def test_a_run_that_never_began_properly_does_not_hide_the_one_before(
    session: Session, alice: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mintbook.train.examples import Examples

    alice.train(FACTS, background=True, **{**QUICK, "steps": 500}).end()
    with monkeypatch.context() as patch:
        patch.setattr(Examples, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            alice.train(FACTS, **QUICK)
    with pytest.raises(DataError, match="validation"):
        alice.train(FACTS[:1], **{**QUICK, "validation": 0.5})
    assert [r.status for r in session.store.runs(record="alice")] == ["failed", "stopped"]
    resumed = alice.resume(background=True)
    resumed.end()
    assert resumed.id == session.store.runs(record="alice")[1].id


def test_examples_longer_than_the_base_can_read_are_refused(alice: Adapter) -> None:
    with pytest.raises(ConfigError, match="made for 512"):
        alice.train(FACTS, max_length=2000, **QUICK)


def test_a_failing_training_leaves_the_adapter_as_it_was(
    session: Session, alice: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice.train(FACTS, **QUICK)
    free = session.engine.model.bank.free_rows
    with monkeypatch.context() as patch:
        patch.setattr(session.engine.model, "backward", lambda *_: 1 / 0)
        with pytest.raises(RunFailed, match="ZeroDivisionError"):
            alice.train(FACTS, **QUICK)
    assert [r.number for r in alice.revisions] == [1]
    assert session.engine.model.bank.free_rows == free
    assert session.store.runs(record="alice", limit=1)[0].status == "failed"
    alice.train(FACTS, **QUICK)
    assert alice.revision().number == 2


def test_answers_say_which_revision_gave_them_and_need_no_reload(session: Session, alice: Adapter) -> None:
    alice.train(FACTS, **QUICK)
    alice.train(FACTS, **{**QUICK, "learning_rate": 0.05, "steps": 12})
    old, new = alice.generate("What is 3?", at="@1", max_tokens=8), alice.generate("What is 3?", max_tokens=8)
    assert (old.revision, new.revision) == ("alice@1", "alice@2")
    assert (old.digest, new.digest) == (alice.revision("@1").digest, alice.revision("@2").digest)
    assert old.tokens != new.tokens
    alice.alias("best", "@1")
    assert alice.generate("What is 3?", at="@best", max_tokens=8) == old
    assert "".join(c.text for c in alice.stream("What is 3?", at="@1", max_tokens=8)) == old.text
    assert alice.rollback().reference == "alice@1"
    assert alice.generate("What is 3?", max_tokens=8) == old
    with pytest.raises(UnknownReference, match="first revision"):
        alice.rollback()
    with pytest.raises(UnknownReference, match="alice"):
        alice.generate("x", at="@9")
    with pytest.raises(UnknownReference, match="'@3'"):
        alice.generate("x", at="3")


def test_an_interrupted_wait_stops_the_run_with_its_state_saved(
    session: Session, alice: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mintbook.display.live import Live

    def interrupt(self: Live, card: object, line: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Live, "show", interrupt)
        with pytest.raises(KeyboardInterrupt):
            alice.train(FACTS, **{**QUICK, "steps": 4000})
    row = session.store.runs(record="alice", limit=1)[0]
    assert row.status == "stopped"
    assert (session.store.run_folder(row.id) / "checkpoint.safetensors").is_file()
    assert not [t for t in threading.enumerate() if t.name.startswith("mintbook-2")]


def test_diff_and_evaluation_run_on_what_they_name(session: Session, alice: Adapter) -> None:
    alice.train(FACTS, **QUICK)
    bob = session.adapter("bob", rank=2, targets="attention")
    bob.train(FACTS, **QUICK)
    base = alice.diff(probes=["What is 3?"])
    assert base.weights.norm_a == 0
    assert base.weights.norm_b == pytest.approx(alice.revision().manifest.receipt["update_norm"], rel=1e-6)
    assert base.behaviour is not None
    assert base.behaviour.kl is not None
    assert base.behaviour.kl > 0
    other = alice.diff(bob, probes=[])
    assert (other.left.label, other.right.label) == ("alice@1", "bob@1")
    assert other.behaviour is None
    same = alice.diff("@1", "@1", probes=["What is 3?"])
    assert same.weights.norm_diff == pytest.approx(0, abs=1e-9)
    assert same.behaviour is not None
    assert same.behaviour.kl == 0
    evaluation = alice.evaluate(cost=False)
    assert evaluation.subject.reference == "alice@1"
    assert evaluation.subject.base_digest == session.base.digest
