from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mintbook.errors import RunError, UnknownReference
from mintbook.store.store import Store


def test_a_run_is_written_at_its_ends(store: Store) -> None:
    run = store.start_run("train", "alice", {"steps": 3})
    assert (run.status, run.ended, run.result, run.error) == ("running", None, None, None)
    assert store.run_folder(run.id).is_dir() and store.run_folder(run.id).parent == store.path / "runs"
    done = store.update_run(run.id, status="done", result={"loss": math.nan})
    assert done.status == "done" and done.ended is not None and done.ended >= done.started
    again = store.run(run.id)
    assert again.config == {"steps": 3} and again.result is not None and math.isnan(again.result["loss"])


def test_ids_sort_by_time_and_never_repeat(store: Store) -> None:
    ids = [store.start_run("train", None, {}).id for _ in range(50)]
    assert ids == sorted(set(ids))
    assert [run.id for run in store.runs()] == ids[::-1]


def test_runs_are_found_by_record_and_status(store: Store, made: Any) -> None:
    made.record(store, "bob")
    first, second, third = (store.start_run("train", record, {}).id for record in ("alice", "bob", "alice"))
    store.update_run(first, status="failed", error="the loss is not finite")
    assert [run.id for run in store.runs(record="alice")] == [third, first]
    assert [run.id for run in store.runs(status="running")] == [third, second]
    assert [run.id for run in store.runs(status="running", limit=1)] == [third]
    assert [run.id for run in store.runs(limit=2)] == [third, second]
    assert [run.error for run in store.runs(status="failed")] == ["the loss is not finite"]
    assert store.runs(status="done") == []


def test_a_run_of_a_dead_process_reads_as_interrupted_and_is_taken_up(store: Store) -> None:
    dead, living = store.start_run("train", "alice", {}).id, store.start_run("train", "alice", {}).id
    with store._database.transaction() as connection:
        connection.execute(
            'UPDATE run SET process = replace(process, \'"started": "\', \'"started": "0\') WHERE id = ?', (dead,)
        )
    assert store.run(dead).status == "interrupted"
    assert [run.id for run in store.runs(status="interrupted")] == [dead]
    assert [run.id for run in store.runs(status="running")] == [living]
    taken = store.update_run(dead, status="running")
    assert taken.status == "running" and taken.process == store.run(living).process and taken.ended is None


def test_a_result_stays_when_a_run_is_taken_up_again(store: Store) -> None:
    run = store.start_run("train", "alice", {}).id
    store.update_run(run, status="stopped", result={"step": 5}, error="by hand")
    again = store.update_run(run, status="running")
    assert (again.result, again.error, again.ended) == ({"step": 5}, None, None)


def test_what_does_not_exist_is_refused(store: Store) -> None:
    run = store.start_run("train", "alice", {}).id
    with pytest.raises(UnknownReference, match=run):
        store.run(run[:-1] + "x")
    with pytest.raises(UnknownReference):
        store.update_run("nothing", status="done")
    with pytest.raises(UnknownReference, match="'bob'"):
        store.start_run("train", "bob", {})
    with pytest.raises(UnknownReference, match="'bob'"):
        store.runs(record="bob")
    for call in (lambda: store.runs(status="dnoe"), lambda: store.update_run(run, status="interrupted")):  # type: ignore[arg-type]
        with pytest.raises(RunError, match="stopped"):
            call()
    assert [path.name for path in (store.path / "runs").iterdir()] == [run], (
        "no folder is left of a run that did not begin"
    )


def test_folders_do_not_leave_the_store(store: Store) -> None:
    for name in ("../../etc", "/etc", "..", ""):
        with pytest.raises(UnknownReference):
            store.run_folder(name)
    assert isinstance(store.run_folder(store.start_run("train", None, {}).id), Path)
