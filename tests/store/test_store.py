from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from mintbook.errors import (
    BaseMismatch,
    FormatError,
    InvalidReference,
    RecordExists,
    StoreError,
    UnknownReference,
)
from mintbook.store.commit import Draft
from mintbook.store.store import Store

Teach = Callable[..., Any]


def files_in(store: Store) -> list[Path]:
    return [path for folder in ("blobs", "incoming") for path in (store.path / folder).rglob("*") if path.is_file()]


def test_a_revision_holds_what_was_committed(store: Store, made: Any, tmp_path: Path) -> None:
    page, state = made.page(), tmp_path / "state"
    manifest = made.manifest(page)
    state.write_bytes(b"moments")
    revision = store.commit("alice", page=page, manifest=manifest, state=state)
    assert (revision.reference, revision.digest, revision.manifest) == ("alice@1", manifest.digest, manifest)
    loaded = store.page(revision)
    assert torch.equal(loaded.tensor, page.tensor)
    assert (loaded.sites, loaded.ranks, loaded.scales) == (page.sites, page.ranks, page.scales)
    kept = store.state_path(revision)
    assert kept is not None and kept.read_bytes() == b"moments" and not state.exists()
    assert store.record("alice").head == 1
    assert store.verify() == []
    assert len(files_in(store)) == 2


def test_a_store_opens_again_with_what_it_held(store: Store, teach: Teach) -> None:
    teach(0), teach(1)
    store.set_alias("alice", "prod", 1)
    store.close()
    store.close()
    with Store.open(store.path) as again:
        assert [revision.reference for revision in again.revisions("alice")] == ["alice@1", "alice@2"]
        assert again.aliases("alice") == {"prod": 1}
        assert again.resolve("alice").number == 2
    with pytest.raises(StoreError, match="closed"):
        store.record("alice")


def test_every_form_of_a_reference_resolves(store: Store, teach: Teach) -> None:
    first, second = teach(0), teach(1)
    store.set_alias("alice", "prod", 1)
    assert store.resolve("alice") == second
    assert store.resolve("alice@1") == store.resolve("alice@prod") == first
    assert store.resolve("@" + first.digest) == store.resolve("@" + first.digest[:8]) == first


def test_what_does_not_exist_is_named_with_what_does(store: Store, teach: Teach) -> None:
    with pytest.raises(UnknownReference, match="alice has no revision yet"):
        store.resolve("alice")
    for seed in range(4):
        teach(seed)
    store.set_alias("alice", "prod", 2)
    with pytest.raises(UnknownReference, match="Nearest: 'alice'"):
        store.resolve("alise@3")
    with pytest.raises(UnknownReference, match=r"no revision alice@9\. alice has revisions 1–4 and alias prod\."):
        store.resolve("alice@9")
    with pytest.raises(UnknownReference, match=r"no alias alice@prud\. alice has revisions 1–4 and alias prod\."):
        store.resolve("alice@prud")
    with pytest.raises(UnknownReference, match="begins with deadbeef00"):
        store.resolve("@deadbeef00")
    with pytest.raises(InvalidReference):
        store.resolve("alice@")
    for call in (store.record, store.revisions, store.aliases, store.alias_history, store.lease):
        with pytest.raises(UnknownReference, match="'bob'"):
            call("bob")


def test_near_names_are_found_in_a_large_store(store: Store, made: Any) -> None:
    with store._database.transaction() as connection:
        connection.executemany(
            "INSERT INTO record (name, base_digest, base_name, rank, alpha, alpha_rule, targets, lora, created) "
            "SELECT ?, base_digest, base_name, rank, alpha, alpha_rule, targets, lora, created "
            "FROM record WHERE name = 'alice'",
            [(f"user-{number:05}",) for number in range(5000)],
        )
    with pytest.raises(UnknownReference, match="'user-02500'"):
        store.record("user-02500x")


def test_an_ambiguous_digest_asks_for_more_digits(store: Store, teach: Teach) -> None:
    first, second = teach(0), teach(1)
    shared = "0" * 8
    with store._database.transaction() as connection:
        for revision, tail in ((first, "1"), (second, "2")):
            connection.execute(
                "UPDATE revision SET digest = ? WHERE digest = ?",
                (shared + tail + revision.digest[9:], revision.digest),
            )
    with pytest.raises(UnknownReference, match=r"several digests: @000000001.*, @000000002.*more digits"):
        store.resolve("@" + shared)


def test_equal_content_in_two_records_is_one_digest_and_one_file(store: Store, made: Any, teach: Teach) -> None:
    made.record(store, "bob")
    first, second = teach(0), teach(0, "bob")
    assert first.digest == second.digest and first.blob == second.blob
    assert store.resolve("@" + first.digest) == first
    assert len(files_in(store)) == 1


def test_the_same_manifest_again_is_the_same_revision(store: Store, made: Any, teach: Teach, tmp_path: Path) -> None:
    first, _ = teach(0), teach(1)
    state = tmp_path / "state"
    assert teach(0, state=state) == first, "a retry may come after the state has moved in"
    state.write_bytes(b"left over")
    assert teach(0, state=state) == first
    assert not state.exists()
    assert store.record("alice").head == 2 and len(store.revisions("alice")) == 2


def test_several_drafts_become_visible_together_or_not_at_all(store: Store, made: Any) -> None:
    made.record(store, "bob")

    def draft(record: str, seed: int, **changed: Any) -> Draft:
        page = made.page(seed)
        return Draft(record=record, page=page, manifest=made.manifest(page, **changed))

    revisions = store.commit_many([draft("alice", 0), draft("bob", 1), draft("alice", 2)])
    assert [revision.reference for revision in revisions] == ["alice@1", "bob@1", "alice@2"]
    with pytest.raises(UnknownReference, match="'carol'"):
        store.commit_many([draft("alice", 3), draft("carol", 4)])
    assert store.record("alice").head == 2
    assert store.commit_many([]) == []
    assert not list((store.path / "incoming").iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(store: Store, made: Any, value: float) -> None:
    page = made.page()
    page.tensor[0, 12] = value
    with pytest.raises(FormatError, match=r"NaN or infinity in layers\.0\.up_proj"):
        store.commit("alice", page=page, manifest=made.manifest(page))
    assert store.revisions("alice") == [] and files_in(store) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weights_digest", "0" * 64),
        ("rank", 3),
        ("sites", 1),
        ("parameters", 1),
        ("dtype", "bfloat16"),
        ("layout_version", "rank-rows/0"),
    ],
)
def test_a_manifest_that_is_not_of_these_weights_is_refused(store: Store, made: Any, field: str, value: object) -> None:
    page = made.page()
    with pytest.raises(FormatError, match=f"says {field} {value!r}"):
        store.commit("alice", page=page, manifest=made.manifest(page, **{field: value}))
    assert store.revisions("alice") == [] and files_in(store) == []


def test_weights_for_another_base_are_refused(store: Store, made: Any) -> None:
    page = made.page()
    manifest = made.manifest(page, base_digest="c" * 64, weights_digest=page.weights_digest("c" * 64))
    with pytest.raises(BaseMismatch, match="belongs to base tiny"):
        store.commit("alice", page=page, manifest=manifest)
    assert store.revisions("alice") == [] and files_in(store) == []


def test_a_missing_state_file_is_refused(store: Store, teach: Teach, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such file"):
        teach(0, state=tmp_path / "nothing")
    assert store.revisions("alice") == [] and files_in(store) == []


def test_a_full_disk_is_an_error_that_leaves_nothing(
    store: Store, teach: Teach, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        teach(0)
    monkeypatch.undo()
    assert store.revisions("alice") == [] and files_in(store) == []
    assert teach(0).number == 1


def test_a_taken_name_is_refused(store: Store, made: Any) -> None:
    with pytest.raises(RecordExists, match="'alice'"):
        made.record(store, "alice")
    with pytest.raises(InvalidReference):
        made.record(store, "../alice")


def test_records_are_listed_in_pages(store: Store, made: Any) -> None:
    for name in ("bob", "al", "alicia", "Zoe", "b_b"):
        made.record(store, name)
    assert [record.name for record in store.records()] == ["Zoe", "al", "alice", "alicia", "b_b", "bob"]
    assert [record.name for record in store.records(prefix="al")] == ["al", "alice", "alicia"]
    assert [record.name for record in store.records(limit=2, after="al")] == ["alice", "alicia"]
    assert [record.name for record in store.records(prefix="b_")] == ["b_b"]
    assert store.count_records() == 6
    assert store.find_record("nobody") is None
    assert store.record("alice").lora == made.lora


def test_aliases_and_the_head_move_and_their_history_stays(store: Store, teach: Teach) -> None:
    for seed in range(3):
        teach(seed)
    store.set_alias("alice", "prod", 2)
    store.set_alias("alice", "prod", 3)
    assert store.set_head("alice", 1).head == 1
    assert store.resolve("alice").number == 1
    assert teach(3).number == 4, "numbers go on from the newest, not from the head"
    assert store.aliases("alice") == {"prod": 3}
    assert [(move.pointer, move.previous, move.number) for move in store.alias_history("alice")] == [
        ("head", None, 1),
        ("head", 1, 2),
        ("head", 2, 3),
        ("prod", None, 2),
        ("prod", 2, 3),
        ("head", 3, 1),
        ("head", 1, 4),
    ]
    assert len(store.revisions("alice")) == 4


@pytest.mark.parametrize("number", [0, -1, 2, None, "1"])
def test_pointers_only_point_at_revisions(store: Store, teach: Teach, number: Any) -> None:
    teach(0)
    with pytest.raises(UnknownReference, match="alice has revision 1"):
        store.set_alias("alice", "prod", number)
    with pytest.raises(UnknownReference, match="alice has revision 1"):
        store.set_head("alice", number)
    assert store.alias_history("alice")[1:] == []


def test_threads_share_a_store(store: Store, made: Any) -> None:
    def work(worker: int) -> None:
        for turn in range(5):
            page = made.page(10 * worker + turn)
            revision = store.commit("alice", page=page, manifest=made.manifest(page))
            assert store.resolve(revision.reference) == revision

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert [revision.number for revision in store.revisions("alice")] == list(range(1, 21))
    assert store.verify() == []
