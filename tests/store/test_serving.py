"""Weights as they are served: the right precision, and never a damaged byte."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mintbook.errors import CorruptStore
from mintbook.store.revisions import Revision
from mintbook.store.store import Store


@pytest.fixture
def served(store: Store, made: Any) -> Revision:
    """A revision that was made on a base in bfloat16."""
    page = made.page(3)
    return store.commit("alice", page=page, manifest=made.manifest(page, compute_dtype="bfloat16"))


def test_a_commit_keeps_a_copy_in_the_precision_of_its_base(store: Store, made: Any, served: Revision) -> None:
    stages: list[str] = []
    page = store.serving_page(served, torch.bfloat16, stages.append)
    assert page.tensor.dtype == torch.bfloat16
    assert torch.equal(page.tensor, made.page(3).tensor.bfloat16())
    assert (page.sites, page.ranks, page.scales) == (made.page(3).sites, (2, 1), (1.0, 2.0))
    assert stages == ["resolve", "fetch", "build"]
    assert store.verify() == []
    assert store.collect_strays(min_age_s=0) == []
    assert torch.equal(store.serving_page(served, torch.float32).tensor, made.page(3).tensor)


def test_a_precision_that_nobody_wrote_is_made_from_the_hashed_master(
    store: Store, made: Any, teach: Callable[..., Any]
) -> None:
    revision = teach(4)
    assert torch.equal(store.serving_page(revision, torch.float16).tensor, made.page(4).tensor.half())
    blob = store._blobs.path(revision.blob)
    blob.write_bytes(blob.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(CorruptStore, match=str(blob)):
        store.serving_page(revision, torch.float16)


def test_a_flipped_bit_anywhere_in_the_copy_is_found_without_sha256(
    store: Store, served: Revision, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = store._database.rows("SELECT file FROM page_file WHERE dtype = 'bfloat16'")[0]["file"]
    path = store._blobs.path(file)
    whole = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(store._blobs, "checked", lambda *_: 1 / 0)
        store.serving_page(served, torch.bfloat16)
        for at in range(0, len(whole), 3):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            with pytest.raises(CorruptStore, match="checksum"):
                store.serving_page(served, torch.bfloat16)
    assert [problem.reference for problem in store.verify()] == ["alice@1"]
    for cut in (b"", whole[:4], whole[:40], whole[:-2]):
        path.write_bytes(cut)
        with pytest.raises(CorruptStore, match=str(path)):
            store.serving_page(served, torch.bfloat16)
    path.unlink()
    with pytest.raises(CorruptStore, match="missing"):
        store.serving_page(served, torch.bfloat16)
    assert "missing" in store.verify()[0].message


def test_the_copy_of_other_weights_is_found(store: Store, made: Any, served: Revision) -> None:
    other = made.page(5)
    store.commit("alice", page=other, manifest=made.manifest(other, compute_dtype="bfloat16"))
    with store._database.transaction() as connection:
        connection.execute(
            "UPDATE page_file SET (file, checksum) = (SELECT file, checksum FROM page_file AS o WHERE o.dtype = "
            "'bfloat16' AND o.weights != page_file.weights) WHERE weights = ? AND dtype = 'bfloat16'",
            (served.blob,),
        )
    assert "not the copy" in store.verify(served)[0].message


def test_a_file_of_another_structure_is_never_served(store: Store, made: Any, served: Revision) -> None:
    page = made.page(6)
    narrow = type(page)(page.tensor[:1].contiguous(), page.sites, (1, 1), page.scales)
    other = store.commit("alice", page=narrow, manifest=made.manifest(narrow, rank=1))
    with store._database.transaction() as connection:
        connection.execute(
            "UPDATE page_file SET (file, checksum) = (SELECT file, checksum FROM page_file WHERE weights = ?) "
            "WHERE weights = ? AND dtype = 'bfloat16'",
            (other.blob, served.blob),
        )
    with pytest.raises(CorruptStore, match=r"alice@1 have rank 1"):
        store.serving_page(served, torch.bfloat16)


def test_a_store_of_the_first_format_serves_what_it_holds(store: Store, made: Any, served: Revision) -> None:
    with store._database.transaction() as connection:
        connection.execute("DROP TABLE page_file")
        connection.execute("PRAGMA user_version = 1")
    with Store.open(store.path) as again:
        assert torch.equal(again.serving_page(served, torch.bfloat16).tensor, made.page(3).tensor.bfloat16())
        assert again.verify() == []
