from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mintbook.errors import (
    CorruptStore,
)
from mintbook.store.store import Store

Teach = Callable[..., Any]


def flip_a_bit(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_anywhere_is_found_and_the_file_named(store: Store, teach: Teach, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_bytes(b"moments")
    revision = teach(0, state=state)
    blob = store._blobs.path(revision.blob)
    for at in range(0, blob.stat().st_size, 7):
        flip_a_bit(blob, at)
        with pytest.raises(CorruptStore, match=str(blob)):
            store.page(revision)
        flip_a_bit(blob, at)
    store.page(revision)
    flip_a_bit(blob, -1)
    kept = store.state_path(revision)
    assert kept is not None
    flip_a_bit(kept, 0)
    with pytest.raises(CorruptStore, match=str(kept)):
        store.state_path(revision)
    assert [problem.reference for problem in store.verify()] == ["alice@1", "alice@1"]
    assert [problem.message.split()[0] for problem in store.verify(revision)] == [f"{blob},", f"{kept},"]


def test_a_header_that_lies_is_found_without_the_hash_of_the_file(store: Store, teach: Teach) -> None:
    revision = teach(0)
    blob = store._blobs.path(revision.blob)
    blob.write_bytes(blob.read_bytes().replace(b'\\"sites\\"', b'\\"sitez\\"'))
    with pytest.raises(CorruptStore, match=str(blob)):
        store.page(revision, verify=False)


def test_a_missing_file_is_found(store: Store, teach: Teach) -> None:
    revision = teach(0)
    store._blobs.path(revision.blob).unlink()
    for verify in (True, False):
        with pytest.raises(CorruptStore, match="missing"):
            store.page(revision, verify=verify)
    assert "missing" in store.verify()[0].message


def test_a_row_that_names_another_revisions_file_is_found(store: Store, teach: Teach) -> None:
    first, second = teach(0), teach(1)
    with pytest.raises(CorruptStore, match="does not hold the weights of alice@1"):
        store.page(replace(first, blob=second.blob))
    with store._database.transaction() as connection:
        connection.execute("UPDATE revision SET blob = ? WHERE number = 1", (second.blob,))
    assert [problem.reference for problem in store.verify()] == ["alice@1"]


@pytest.mark.parametrize("column", ["manifest", "weights_digest"])
def test_a_changed_row_is_found(store: Store, teach: Teach, column: str) -> None:
    teach(0)
    with store._database.transaction() as connection:
        connection.execute(f"UPDATE revision SET {column} = replace({column}, 'a', 'b')")
    with pytest.raises(CorruptStore, match="alice@1"):
        store.resolve("alice")
    assert [problem.reference for problem in store.verify()] == ["alice@1"]


def test_strays_are_collected_and_nothing_else(store: Store, teach: Teach, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_bytes(b"moments")
    revision = teach(0, state=state)
    run = store.start_run("train", "alice", {})
    stray = store._blobs.path("ab" * 32)
    stray.parent.mkdir(exist_ok=True)
    half = store.path / "incoming" / "half"
    orphan = store.path / "runs" / "20200101-000000-0000"
    orphan.mkdir()
    for path in (stray, half):
        path.write_bytes(b"")
    assert store.collect_strays() == []
    assert sorted(store.collect_strays(min_age_s=0)) == sorted([stray, half, orphan])
    assert not stray.exists() and not half.exists() and not orphan.exists()
    assert store.run_folder(run.id).is_dir()
    assert store.verify(revision) == [] and store.state_path(revision) is not None
