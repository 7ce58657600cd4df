"""Getting revisions ready before anybody asks for them: loaded, and seen to have their effect."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from mintbook.display.live import Live
from mintbook.errors import AdapterError, CapacityError, RunStopped
from mintbook.run import Run
from mintbook.runtime import Runtime
from mintbook.serve.lease import SlotLease
from mintbook.serve.receipt import check_effect
from mintbook.store.revisions import Revision
from mintbook.training_run import PROBE

SHARE = 0.1
"""Share of the engine's time that getting ready takes from answers, at most, where both want it."""
PATIENCE_S = 10.0
"""How long it waits for room that others have."""


def start_prewarm(runtime: Runtime, revisions: Sequence[Revision], title: str) -> Run[list[Revision]]:
    """Get revisions ready in the background; the run's result are those, all in slots at the moment it ends.

    One that cannot be made ready does not keep the others from it; the run fails at its end with what was wrong.
    Raises `CapacityError` at once when the revisions never fit in the slots together.
    """
    wanted = list({revision.weights_digest: revision for revision in revisions}.values())
    rows, room = sum(revision.manifest.rank for revision in wanted), runtime.engine.model.bank.rows
    if rows > room:
        raise CapacityError(
            f"The {len(wanted)} revisions take {rows} rank-rows together, and there are {room}. Prewarm fewer, or open "
            "the session with more slot_rows."
        )
    row = runtime.store.start_run("prewarm", None, {"revisions": [revision.reference for revision in wanted]})
    run: Run[list[Revision]] = Run(runtime.store, row.id, title)
    runtime.runs.add(run)

    def work(run: Run[list[Revision]]) -> list[Revision]:
        def say(done: int) -> None:
            run.progress("getting ready", done, len(wanted))
            if run.stopping:
                raise RunStopped(f"{title} was stopped; {done} of {len(wanted)} revisions were ready.")

        with made_ready(runtime, wanted, say):
            run.outcome = {"ready": [revision.reference for revision in wanted]}
            return wanted

    return run.start(work)


def set_alias_when_ready(runtime: Runtime, revision: Revision, alias: str) -> None:
    """Get a revision ready, show that it goes on, and let its record's alias mean it; else the alias stays."""
    before = runtime.store.aliases(revision.record).get(alias)
    try:
        with Live() as live:
            live.line(f"getting {revision.reference} ready")
            with made_ready(runtime, [revision], lambda done: None):
                runtime.store.set_alias(revision.record, alias, revision.number)
    except BaseException as error:
        means = "means nothing" if before is None else f"still means {revision.record}@{before}"
        error.add_note(f"{revision.record}@{alias} {means}: {revision.reference} did not become ready.")
        raise


@contextmanager
def made_ready(runtime: Runtime, revisions: Sequence[Revision], say: Callable[[int], None]) -> Iterator[None]:
    """Get revisions ready and keep them so for the length of a ``with`` block; ``say`` hears how many are.

    A few are loaded at a time, and between two checks of an effect answers that go on get their share of the engine.
    """
    failed: list[tuple[Revision, Exception]] = []
    with ExitStack() as kept:
        for revision in revisions:
            kept.enter_context(runtime.residency.prewarming(revision))
        ahead: list[tuple[Revision, SlotLease]] = []
        rest = list(reversed(revisions))
        patient_until = time.monotonic() + PATIENCE_S
        while rest or ahead:
            say(len(revisions) - len(rest) - len(ahead))
            try:
                while rest and len(ahead) < runtime.engine.config.loads_in_flight:
                    lease = runtime.residency.lease(rest[-1], runtime.store)
                    kept.callback(lease.end)
                    ahead.append((rest.pop(), lease))
                    patient_until = time.monotonic() + PATIENCE_S
            except CapacityError as error:
                if not ahead and time.monotonic() > patient_until:
                    failed.append((rest.pop(), error))
                    continue
                if not ahead:
                    time.sleep(min(error.retry_after_s, 0.1))
                    continue
            except Exception as error:  # noqa: BLE001 — it is this revision's alone
                failed.append((rest.pop(), error))
                continue
            if not ahead:
                continue
            revision, lease = ahead.pop(0)
            try:
                _verify(runtime, revision, lease)
            except Exception as error:  # noqa: BLE001 — it is this revision's alone
                failed.append((revision, error))
        if failed:
            raise _failure(failed, len(revisions))
        say(len(revisions))
        yield


def _verify(runtime: Runtime, revision: Revision, lease: SlotLease) -> None:
    slot = lease.result()
    if lease.entry.ready:
        return
    began = time.monotonic()
    check_effect(runtime.engine, revision, slot, tuple(runtime.base.renderer.prompt(PROBE)))
    runtime.residency.set_ready(lease)
    until = time.monotonic() + (time.monotonic() - began) * (1 / SHARE - 1)
    while not runtime.engine.scheduler.idle and time.monotonic() < until:
        time.sleep(0.005)


def _failure(failed: Sequence[tuple[Revision, Exception]], count: int) -> Exception:
    if count == 1:
        return failed[0][1]
    what = "; ".join(f"{revision.reference}: {error}" for revision, error in failed)
    error = AdapterError(f"{len(failed)} of {count} revisions are not ready. {what}")
    error.__cause__ = failed[0][1]
    return error
