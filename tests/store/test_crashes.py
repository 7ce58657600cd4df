"""Whatever is visible after a crash is complete, and doing it again succeeds."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mintbook.store.store import Store

Crashes = dict[str, list[tuple[Path, list[str]]]]


@pytest.fixture(scope="module")
def crashes(script: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Crashes:
    """For every scenario and write boundary, the folder that a death there left and what had been begun by then."""
    root = tmp_path_factory.mktemp("crashes")
    found: Crashes = defaultdict(list)
    for line in script("crash_at_every_boundary.py", root):
        scenario, boundary, log = json.loads(line)
        assert boundary == len(found[scenario])
        found[scenario].append((root / scenario / f"{boundary:03}", log))
    return found


def check_complete(store: Store, made: Any, record: str, where: str) -> int:
    """Every visible revision has its bytes and its state; return how many there are."""
    revisions = store.revisions(record)
    assert store.record(record).latest == len(revisions), where
    for revision, state in zip(revisions, (b"first", b"second"), strict=False):
        assert torch.equal(store.page(revision).tensor, made.page(revision.number).tensor), where
        kept = store.state_path(revision)
        assert kept is not None and kept.read_bytes() == state, where
    return len(revisions)


def retry(store: Store, made: Any, folder: Path, **rest: Any) -> None:
    """Commit what the dead process wanted to commit, as it would do itself."""
    page, state = made.page(2), folder / "alice-state"
    store.commit("alice", page=page, manifest=made.manifest(page, seed=2), state=state, **rest)
    assert not state.exists()


def test_a_commit_that_dies_anywhere(crashes: Crashes, made: Any) -> None:
    before, after = 0, 0
    for folder, log in crashes["commit"]:
        with Store.open(folder / "store") as store:
            count = check_complete(store, made, "alice", log[-1])
            assert store.verify() == [], log[-1]
            assert store.resolve("alice").number == count
            before, after = before + (count == 1), after + (count == 2)
            with store.lease("alice") as lease:
                retry(store, made, folder, lease=lease)
            store.collect_strays(min_age_s=0)
            assert check_complete(store, made, "alice", log[-1]) == 2
            assert store.resolve("alice").number == 2
            assert store.verify() == [] and not list((store.path / "incoming").iterdir())
    # Enough boundaries on both sides of the row, or the script watches the wrong calls.
    assert before > 12 and after > 3
    check_order(log)


def check_order(log: list[str]) -> None:
    """A file is forced to disk before it gets its name, and its name before the row that tells of it."""
    steps = [line.split()[0] for line in log]
    inserts = [at for at, line in enumerate(log) if line.startswith("execute INSERT INTO revision")]
    named = [at for at, step in enumerate(steps) if step == "replace"]
    for at in named:
        temporary = log[at].split()[1]
        written = next(
            i for i, line in enumerate(log) if line.startswith(("half of save", "link")) and temporary in line
        )
        assert "fsync" in steps[written:at]
    for at in inserts:
        assert len(named) == 2 and steps[max(named) : at].count("fsync") >= 2


def test_a_new_store_that_dies_anywhere(crashes: Crashes, made: Any) -> None:
    counts = []
    for folder, _ in crashes["create"]:
        with Store.open(folder / "new store") as store:
            counts.append(store.count_records())
            assert store.verify() == []
            if counts[-1] == 0:
                made.record(store, "carol")
            assert store.record("carol").head is None
    assert counts == sorted(counts) and set(counts) == {0, 1}


def test_every_other_change_happens_whole_or_not_at_all(crashes: Crashes, made: Any) -> None:
    seen = set()
    for folder, log in crashes["everything_else"]:
        with Store.open(folder / "store") as store:
            count = check_complete(store, made, "alice", log[-1])
            assert check_complete(store, made, "bob", log[-1]) == count, "revisions committed together appear together"
            head, aliases = store.record("alice").head, store.aliases("alice")
            runs = store.runs()
            seen.add((count, head, len(aliases), tuple(run.status for run in runs)))
            assert all(store.run_folder(run.id).is_dir() for run in runs)
            assert store.verify() == [], log[-1]
    begun, ended = ("interrupted",), ("done",)
    assert seen == {
        (1, 1, 0, ()),
        (1, 1, 0, begun),
        (2, 2, 0, begun),
        (2, 2, 1, begun),
        (2, 1, 1, begun),
        (2, 1, 1, ended),
    }
