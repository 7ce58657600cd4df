"""Several processes use one store at once; every scenario prints JSON lines of its name and what it has to tell.

Usage: crowd.py FOLDER. Each scenario has the folder of its name in there. All run in one call, because it takes longer
to import torch than to run them.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_page import add_record, manifest_of, tiny_page

from mintbook.errors import RecordExists, RecordLeased, RunError, StoreError
from mintbook.store.store import Store

torch.set_num_threads(1)
SCENARIO = ""


def tell(what: Any) -> None:
    """Print one line of the present scenario."""
    os.write(1, json.dumps([SCENARIO, what]).encode() + b"\n")


def fork(child: Callable[[], Any]) -> int:
    """Run ``child`` in a process of its own, which prints what it returns."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            tell(child())
            code = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            # Never back into what the parent is doing.
            os._exit(code)
    return pid


def wait_for(pids: list[int]) -> None:
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    if any(codes):
        raise SystemExit(f"children ended with {codes}")


def starting_gun() -> tuple[Callable[[], None], Callable[[], None]]:
    """Return what children call to wait, and what the parent calls to let all go at once."""
    reading, writing = os.pipe()

    def ready() -> None:
        os.close(writing)
        os.read(reading, 1)

    return ready, lambda: os.close(writing)


def commits(folder: Path, records: list[str], turns: int) -> None:
    with Store.open(folder) as store:
        for record in sorted(set(records)):
            add_record(store, record)
    ready, go = starting_gun()

    def work(worker: int, record: str) -> list[str]:
        with Store.open(folder) as store:
            ready()
            made = []
            for turn in range(turns):
                page = tiny_page(100 * worker + turn)
                revision = store.commit(record, page=page, manifest=manifest_of(page))
                made.append(f"{revision.reference} {revision.digest}")
            return made

    pids = [fork(lambda w=worker, r=record: work(w, r)) for worker, record in enumerate(records)]  # type: ignore[misc]
    go()
    wait_for(pids)


def one_record(folder: Path) -> None:
    commits(folder, ["alice", "alice", "alice"], turns=8)


def two_records(folder: Path) -> None:
    commits(folder, ["alice", "bob"], turns=8)


def one_lease(folder: Path) -> None:
    """Twelve processes want one lease at once, and the winner keeps it until the others have lost."""
    with Store.open(folder) as store:
        add_record(store, "alice")
    ready, go = starting_gun()
    kept, release = os.pipe()

    def work() -> str:
        with Store.open(folder) as store:
            ready()
            os.close(release)
            try:
                with store.lease("alice"):
                    # Should two win by mistake, both end by themselves.
                    select.select([kept], [], [], 10)
                    return "won"
            except RecordLeased as error:
                return str(error)

    pids = [fork(work) for _ in range(12)]
    go()
    # The winner sees the end of the pipe only when no other process holds its writing end.
    for _ in range(11):
        pid, status = os.wait()
        pids.remove(pid)
        if status:
            raise SystemExit("a child failed")
    os.close(release)
    wait_for(pids)


def dead_holder(folder: Path) -> None:
    """A holder is killed; the lease is free at once, and what it left is refused."""
    with Store.open(folder) as store:
        add_record(store, "alice")
    held, hold = os.pipe()

    def holder() -> None:
        with Store.open(folder) as store:
            store.lease("alice")
            store.start_run("train", "alice", {})
            os.write(hold, b"x")
            time.sleep(60)

    pid = fork(holder)
    os.read(held, 1)
    with Store.open(folder) as store:
        try:
            store.lease("alice")
            refused = ""
        except RecordLeased as error:
            refused = str(error)
        page = tiny_page()
        try:
            store.commit("alice", page=page, manifest=manifest_of(page))
            committed = True
        except RecordLeased:
            committed = False
        alive = store.runs()[0].status
        try:
            store.update_run(store.runs()[0].id, status="stopped")
            foreign = ""
        except RunError as error:
            foreign = str(error)
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while store.runs()[0].status == "running" and time.monotonic() < deadline:
            time.sleep(0.001)
        # Not waited for yet: a zombie keeps its pid and counts as dead.
        zombie = store.runs()[0].status
        with store.lease("alice") as lease:
            store.commit("alice", page=page, manifest=manifest_of(page), lease=lease)
        os.waitpid(pid, 0)
        resumed = store.update_run(store.runs()[0].id, status="running").status
    told = {"pid": pid, "refused": refused, "committed": committed, "alive": alive, "foreign": foreign}
    tell({**told, "zombie": zombie, "resumed": resumed})


def one_new_store(folder: Path) -> None:
    """Many processes make the same store and the same record at once."""
    ready, go = starting_gun()

    def work() -> str:
        ready()
        with Store.open(folder) as store:
            try:
                add_record(store, "alice")
                return "made"
            except RecordExists:
                return "found"

    pids = [fork(work) for _ in range(12)]
    go()
    wait_for(pids)


def killed_at_random(folder: Path) -> None:
    """A process commits without pause and is killed, again and again."""
    with Store.open(folder) as store:
        add_record(store, "alice")

    def work(first: int) -> None:
        with Store.open(folder) as store, store.lease("alice") as lease:
            for seed in range(first, first + 10_000):
                page = tiny_page(seed)
                store.commit("alice", page=page, manifest=manifest_of(page, seed=seed), lease=lease)

    for turn in range(8):
        pid = fork(lambda t=turn: work(10_000 * t))  # type: ignore[misc]
        time.sleep(0.08 + 0.0071 * turn)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with Store.open(folder) as store:
            tell([len(store.revisions("alice")), len(store.verify()), store.record("alice").head])


def after_a_fork(folder: Path) -> None:
    """A child may not use its parent's open store, and the parent may go on."""
    with Store.open(folder) as store:
        add_record(store, "alice")

        def work() -> str:
            try:
                store.record("alice")
            except StoreError as error:
                return str(error)
            return "no error"

        wait_for([fork(work)])
        store.record("alice")


def unwritable(folder: Path) -> None:
    """Someone without the right to write opens a store: a new one, and one that is there."""
    with Store.open(folder / "there") as store:
        add_record(store, "alice")
    (folder / "there" / "store.sqlite").chmod(0o444)
    for path in (folder / "there", folder):
        path.chmod(0o555)

    def work() -> list[str]:
        if os.getuid() == 0:
            os.setuid(65534)
        told = []
        for name in ("new", "there"):
            try:
                Store.open(folder / name)
            except StoreError as error:
                told.append(f"{type(error).__name__}: {error}")
        return told

    wait_for([fork(work)])
    for path in (folder, folder / "there"):
        path.chmod(0o755)


SCENARIOS = (one_record, two_records, one_lease, dead_holder, one_new_store, killed_at_random, after_a_fork, unwritable)

if __name__ == "__main__":
    for scenario in SCENARIOS:
        SCENARIO = scenario.__name__
        try:
            scenario(Path(sys.argv[1]) / SCENARIO)
        except SystemExit as error:
            print(f"{SCENARIO}: {error}", file=sys.stderr)
