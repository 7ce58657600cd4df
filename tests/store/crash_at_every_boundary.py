"""Do a thing to a store in forked children, each of which is killed at the next write boundary; one JSON line for each.

Usage: crash_at_every_boundary.py FOLDER. FOLDER/SCENARIO/NNN is what the child that died at boundary NNN left behind;
the last line of a scenario is of the child that reached the end. All run in one call, because importing torch takes
longer.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_page import add_record, manifest_of, tiny_page

from mintbook.store.commit import Draft
from mintbook.store.page import Page
from mintbook.store.store import Store

torch.set_num_threads(1)


class Boundaries:
    """Counts the calls that write, and kills the process before the chosen one, or in the middle of it."""

    def __init__(self, scenario: str, fatal: int) -> None:
        self.scenario = scenario
        self.fatal = fatal
        self.passed = 0
        self.log: list[str] = []

    def guard(self, name: str, call: Callable[..., Any], torn: Callable[..., None] | None = None) -> Callable[..., Any]:
        def guarded(*arguments: Any, **options: Any) -> Any:
            text = " ".join(str(argument) for argument in arguments if isinstance(argument, str | os.PathLike))
            if text.startswith("SELECT") or (text.startswith("PRAGMA") and "= " not in text):
                return call(*arguments, **options)
            self._pass(f"{name} {text}")
            if torn is not None:
                if self.passed == self.fatal:
                    torn(*arguments, **options)
                self._pass(f"half of {name} {text}")
            return call(*arguments, **options)

        return guarded

    def _pass(self, what: str) -> None:
        self.log.append(what)
        if self.passed == self.fatal:
            self.report()
            os.kill(os.getpid(), signal.SIGKILL)
        self.passed += 1

    def report(self) -> None:
        os.write(1, json.dumps([self.scenario, self.fatal, self.log]).encode() + b"\n")


def tear_page(page: Page, path: Path) -> None:
    path.write_bytes(b"\x40\0\0\0\0\0\0\0{")


def watch(boundaries: Boundaries) -> None:
    """Put the guards around everything that changes the disk."""
    for name in ("fsync", "replace", "link", "unlink", "mkdir", "utime"):
        setattr(os, name, boundaries.guard(name, getattr(os, name)))
    Page.save = boundaries.guard("save", Page.save, tear_page)  # type: ignore[method-assign]

    class Watched(sqlite3.Connection):
        execute = boundaries.guard("execute", sqlite3.Connection.execute)

    real = sqlite3.connect
    sqlite3.connect = lambda *a, **k: real(*a, **k, factory=Watched)  # type: ignore[assignment]


def draft(folder: Path, record: str, seed: int, **rest: Any) -> Draft:
    page = tiny_page(seed)
    state = folder / f"{record}-state"
    return Draft(record=record, page=page, manifest=manifest_of(page, seed=seed), state=state, **rest)


def prepare(folder: Path) -> None:
    with Store.open(folder / "store") as store:
        for record in ("alice", "bob"):
            add_record(store, record)
            (folder / f"{record}-state").write_bytes(b"first")
            store.commit_many([draft(folder, record, 1)])
            (folder / f"{record}-state").write_bytes(b"second")


def commit(folder: Path) -> None:
    with Store.open(folder / "store") as store, store.lease("alice") as lease:
        store.commit_many([draft(folder, "alice", 2, lease=lease)])


def create(folder: Path) -> None:
    with Store.open(folder / "new store") as store:
        add_record(store, "carol")


def everything_else(folder: Path) -> None:
    with Store.open(folder / "store") as store:
        run = store.start_run("train", "alice", {})
        store.commit_many([draft(folder, "alice", 2), draft(folder, "bob", 2)])
        store.set_alias("alice", "prod", 2)
        store.set_head("alice", 1)
        store.update_run(run.id, status="done", result={"loss": 1.0})
        store.collect_strays(min_age_s=0)


def run(scenario: Callable[[Path], None], root: Path, template: Path) -> None:
    """Run a scenario again and again, until a child comes to its end."""
    for fatal in itertools.count():
        folder = root / f"{fatal:03}"
        shutil.copytree(template, folder)
        child = os.fork()
        if child == 0:
            boundaries = Boundaries(scenario.__name__, fatal)
            watch(boundaries)
            scenario(folder)
            boundaries.report()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) == 0:
            return
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            raise SystemExit(f"the child for boundary {fatal} of {scenario.__name__} failed by itself")


if __name__ == "__main__":
    prepare(Path(sys.argv[1]) / "template")
    for chosen in (create, commit, everything_else):
        run(chosen, Path(sys.argv[1]) / chosen.__name__, Path(sys.argv[1]) / "template")
