"""Several processes at one store."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mintbook.store.store import Store

Told = dict[str, list[Any]]


@pytest.fixture(scope="module")
def crowd() -> Iterator[Path]:
    """A folder for all scenarios; not pytest's, which another user, as whom a root runs one of them, may not enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def told(crowd: Path, script: Callable[..., list[str]]) -> Told:
    """What each scenario had to tell, line by line."""
    lines: Told = defaultdict(list)
    for line in script("crowd.py", crowd):
        scenario, what = json.loads(line)
        lines[scenario].append(what)
    return lines


def test_no_update_of_one_record_is_lost(told: Told, crowd: Path) -> None:
    made = [line for worker in told["one_record"] for line in worker]
    with Store.open(crowd / "one_record") as store:
        revisions = store.revisions("alice")
        assert sorted(made) == sorted(f"{revision.reference} {revision.digest}" for revision in revisions)
        assert [revision.number for revision in revisions] == list(range(1, 25))
        assert store.record("alice").head == 24
        assert store.verify() == []


def test_two_records_are_written_at_once(told: Told, crowd: Path) -> None:
    assert len(told["two_records"]) == 2
    with Store.open(crowd / "two_records") as store:
        for record in ("alice", "bob"):
            assert [revision.number for revision in store.revisions(record)] == list(range(1, 9))
        assert store.verify() == []


def test_of_many_processes_one_gets_the_lease(told: Told) -> None:
    lines = told["one_lease"]
    assert len(lines) == 12 and lines.count("won") == 1
    assert all("'alice' is being trained by process" in line for line in lines if line != "won")


def test_what_a_dead_process_held_is_free_at_once(told: Told) -> None:
    (line,) = told["dead_holder"]
    assert f"process {line['pid']} on " in line["refused"] and " since 20" in line["refused"]
    assert not line["committed"], "a commit without a lease waits for the one that trains"
    assert line["alive"] == "running" and f"process {line['pid']}" in line["foreign"]
    assert line["zombie"] == "interrupted" and line["resumed"] == "running"


def test_many_processes_make_one_store(told: Told) -> None:
    assert sorted(told["one_new_store"]) == ["found"] * 11 + ["made"]


def test_a_writer_killed_at_random_leaves_a_whole_store(told: Told) -> None:
    counts = [count for count, _, _ in told["killed_at_random"]]
    assert len(counts) == 8 and counts == sorted(counts) and counts[-1] > 8
    for count, problems, head in told["killed_at_random"]:
        assert problems == 0 and head == (count or None)


def test_an_open_store_does_not_survive_a_fork(told: Told) -> None:
    (line,) = told["after_a_fork"]
    assert "Open the store again in this process" in line


def test_a_folder_that_cannot_be_written_is_refused(told: Told, crowd: Path) -> None:
    (lines,) = told["unwritable"]
    assert len(lines) == 2
    for name, line in zip(("new", "there"), lines, strict=True):
        assert line.startswith("StoreUnsupported") and "may write" in line
        assert str(crowd / "unwritable" / name) in line
