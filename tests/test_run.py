"""Runs: results, failures, stops, awaiting, and a log that another process can read."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from mintbook.errors import ConfigError, RunFailed, RunStopped
from mintbook.events import read_events
from mintbook.run import Run
from mintbook.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def begin(store: Store, work: object) -> Run[object]:
    return Run(store, store.start_run("test", None, {}).id, "A test").start(work)


def test_a_run_gives_its_result_and_leaves_its_story(store: Store) -> None:
    def work(run: Run[int]) -> int:
        for step in range(3):
            run.record("step", step=step, loss=1.0 / (step + 1))
            run.progress("working", step + 1, 3)
        return 42

    run = begin(store, work)
    assert run.wait() == 42
    assert run.status == "done"
    events = read_events(store.run_folder(run.id) / "events.jsonl")
    assert [e.kind for e in events] == ["started", "step", "step", "step", "ended"]
    assert [m["loss"] for m in run.metrics] == [1.0, 0.5, pytest.approx(1 / 3)]
    assert store.run(run.id).status == "done"
    text = run.card().text()
    assert "loss" in text
    assert "done" in text
    assert asyncio.run(_await(run)) == 42


async def _await(run: Run[object]) -> object:
    return await run


def test_a_failure_is_told_to_who_waits_and_to_the_store(store: Store) -> None:
    run = begin(store, lambda run: 1 // 0)
    with pytest.raises(RunFailed, match=f"{run.id}.*ZeroDivisionError") as caught:
        run.wait()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert store.run(run.id).status == "failed"
    assert "ZeroDivisionError" not in repr(run)

    def refuse(run: Run[None]) -> None:
        raise ConfigError("no such colour")

    with pytest.raises(ConfigError, match="colour"):
        begin(store, refuse).result()


def test_a_stop_is_asked_for_and_said(store: Store) -> None:
    def work(run: Run[None]) -> None:
        while not run.stopping:
            time.sleep(0.002)
        raise RunStopped("stopped as asked")

    run = begin(store, work)
    with pytest.raises(TimeoutError, match="still going on"):
        run.wait(timeout=0.05)
    assert run.status == "running"
    run.stop()
    with pytest.raises(RunStopped):
        run.result()
    assert run.status == store.run(run.id).status == "stopped"


def test_a_card_that_the_cell_shows_already_is_not_shown_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    formatter = pytest.importorskip("IPython.core.formatters").DisplayFormatter()
    run = begin(store, lambda run: 1)
    run.wait()
    assert set(formatter.format(run)[0]) == {"text/html", "text/plain"}
    run._shown_in_cell = 7
    monkeypatch.setattr("mintbook.run.cell_number", lambda: 7)
    assert formatter.format(run)[0] == {"text/plain": repr(run)}
    monkeypatch.setattr("mintbook.run.cell_number", lambda: 8)
    assert "text/html" in formatter.format(run)[0]
