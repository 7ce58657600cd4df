from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest

from mintbook.errors import RecordLeased
from mintbook.store.leases import Lease
from mintbook.store.process import Process
from mintbook.store.store import Store

Teach = Callable[..., Any]


def pretend(store: Store, lease: Lease, **changed: Any) -> None:
    """Write another holder into the lease's row."""
    holder = json.dumps(asdict(replace(lease.process, **changed)))
    with store._database.transaction() as connection:
        connection.execute("UPDATE lease SET process = ? WHERE token = ?", (holder, lease.token))


def test_a_record_has_one_lease_at_a_time(store: Store, made: Any) -> None:
    made.record(store, "bob")
    with store.lease("alice"):
        with pytest.raises(RecordLeased, match=r"trained by this process \(\d+\) since 20.*take_over"):
            store.lease("alice")
        store.lease("bob").release()
    with store.lease("alice"):
        pass


def test_a_lease_is_released_after_an_error(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.lease("alice"):
        _ = 1 / 0
    store.lease("alice").release()


def test_releasing_twice_does_not_end_anothers_lease(store: Store) -> None:
    first = store.lease("alice")
    first.release()
    with store.lease("alice"):
        first.release()
        with pytest.raises(RecordLeased):
            store.lease("alice")


def test_only_the_holder_commits(store: Store, teach: Teach) -> None:
    with store.lease("alice") as lease:
        with pytest.raises(RecordLeased):
            teach(0)
        assert teach(0, lease=lease).number == 1
    with pytest.raises(RecordLeased, match="no longer valid: nobody holds it"):
        teach(1, lease=lease)
    assert teach(1).number == 2


def test_a_lease_that_was_taken_over_commits_nothing(store: Store, teach: Teach) -> None:
    stale = store.lease("alice")
    with store.lease("alice", take_over=True) as lease:
        with pytest.raises(RecordLeased, match=r"no longer valid: process .* holds it now"):
            teach(0, lease=stale)
        stale.release()
        assert teach(0, lease=lease).number == 1
    assert len(store.revisions("alice")) == 1


def test_a_lease_of_another_record_does_not_fit(store: Store, made: Any, teach: Teach) -> None:
    made.record(store, "bob")
    with store.lease("bob") as lease, pytest.raises(RecordLeased, match="is of 'bob'"):
        teach(0, lease=lease)


@pytest.mark.parametrize("changed", [{"started": "1"}, {"boot": "an earlier one"}, {"pid": 2**22 + 1}])
def test_a_dead_holders_lease_is_free(store: Store, changed: dict[str, Any]) -> None:
    lease = store.lease("alice")
    pretend(store, lease, **changed)
    store.lease("alice").release()


def test_a_holder_that_cannot_be_seen_counts_as_living(store: Store) -> None:
    lease = store.lease("alice")
    pretend(store, lease, namespace="pid:[1]", pid=2**22 + 1, host="container")
    with pytest.raises(RecordLeased, match="on container"):
        store.lease("alice")
    store.lease("alice", take_over=True).release()


def test_this_process_is_alive_and_unlike_its_parent() -> None:
    here = Process.current()
    assert here.alive() and here == Process.current()
    later = str(int(here.started) + 1)  # the parent may have started in the same tick of the clock
    assert not replace(here, pid=os.getppid(), started=later).alive(), "a pid with another start is another process"
