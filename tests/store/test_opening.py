from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mintbook.errors import (
    CorruptStore,
    StoreUnsupported,
)
from mintbook.store import filesystem
from mintbook.store.schema import FORMAT
from mintbook.store.store import Store

Teach = Callable[..., Any]


def test_a_newer_format_is_refused_unchanged(store: Store) -> None:
    store.close()
    file = store.path / "store.sqlite"
    connection = sqlite3.connect(file)
    connection.execute(f"PRAGMA user_version = {FORMAT + 1}")
    connection.close()
    before = file.read_bytes()
    with pytest.raises(StoreUnsupported, match=f"format {FORMAT + 1}.*Update mintbook"):
        Store.open(store.path)
    assert file.read_bytes() == before


def test_another_programs_database_is_refused_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "store.sqlite"
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    before = file.read_bytes()
    with pytest.raises(StoreUnsupported, match="another program"):
        Store.open(tmp_path)
    assert file.read_bytes() == before


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "lustre"])
def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    shared = tmp_path / "a share"
    mounts = tmp_path / "mounts"
    point = str(shared).replace(" ", "\\040")
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/x {point} {kind} rw 0 0\n")
    monkeypatch.setattr(filesystem.network_type, "__defaults__", (mounts,))
    with pytest.raises(StoreUnsupported, match=f"network file system \\({kind}\\)"):
        Store.open(shared / "store")
    assert not (shared / "store" / "store.sqlite").exists()
    Store.open(tmp_path / "a share beside").close()


def test_the_last_of_two_mounts_on_one_point_counts(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"server:/x {tmp_path} nfs rw 0 0\n/dev/sdb {tmp_path} ext4 rw 0 0\n")
    assert filesystem.network_type(tmp_path, mounts) is None
    assert filesystem.network_type(tmp_path, tmp_path / "absent") is None


def test_a_file_where_the_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(StoreUnsupported, match="cannot hold a store"):
        Store.open(tmp_path / "store")


def test_a_damaged_database_is_called_so(store: Store, teach: Teach) -> None:
    teach(0)
    store.close()
    file = store.path / "store.sqlite"
    file.write_bytes(b"garbage" + file.read_bytes()[7:])
    with pytest.raises(CorruptStore, match=str(file)):
        Store.open(store.path)
