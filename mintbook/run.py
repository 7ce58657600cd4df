"""The handle of a long action: its progress, its log on disk, and the way to stop it."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable, Container, Generator
from typing import Any, Generic, Literal, TypeVar

from mintbook.display import Block, Card, Curve, Facts, Note
from mintbook.display.live import Live, cell_number
from mintbook.display.quantity import Value, seconds_text
from mintbook.display.shown import Shown
from mintbook.errors import MintbookError, RunFailed, RunStopped
from mintbook.events import EventLog, read_events
from mintbook.store.store import Store

T = TypeVar("T")
CURVES = ("loss", "kl", "validation")


class Run(Shown, Generic[T]):
    """A long action that goes on in a thread of its own.

    Its events are on disk as they happen (``store/runs/<id>/events.jsonl``), so that another process, or this one after
    a crash, can read them. ``wait()`` shows progress; ■ interrupt while waiting stops the run with its state saved.
    """

    def __init__(self, store: Store, run_id: str, title: str) -> None:
        self.id = run_id
        self.title = title
        self._store = store
        self._path = store.run_folder(run_id) / "events.jsonl"
        self._log: EventLog | None = None
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._result: T | None = None
        self._error: BaseException | None = None
        self._began = time.monotonic()
        self._seconds: float | None = None
        self._phase_began = self._began
        self._phase_from = 0.0
        self._state: dict[str, Any] = {"done": 0, "total": 0, "note": "starting"}
        self._metrics: list[dict[str, Any]] = []
        self._facts: list[tuple[str, Value]] = []
        self.outcome: dict[str, Any] | None = None
        """What the run made, as plain data for the store's row (the action sets this)."""
        self._shown_in_cell: int | None = None

    def start(self, work: Callable[[Run[T]], T], *, resumed: bool = False) -> Run[T]:
        """Begin ``work(run)`` in a thread and return this handle."""
        self._log = EventLog(self._path)
        if resumed:
            # A step that was made, lost with the process and made again is in the log twice; the later one counts.
            steps = {e.data["step"]: e.data for e in read_events(self._path) if e.kind == "step"}
            self._metrics = [steps[number] for number in sorted(steps)]
        self.record("resumed" if resumed else "started", title=self.title)
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._work, work), name=f"mintbook-{self.id}", daemon=True).start()
        return self

    @property
    def status(self) -> str:
        """One of ``running``, ``done``, ``stopped``, ``failed``."""
        if not self._ended.is_set():
            return "running"
        if isinstance(self._error, RunStopped):
            return "stopped"
        return "failed" if self._error is not None else "done"

    @property
    def stopping(self) -> bool:
        """Whether someone has asked the run to stop."""
        return self._stopping.is_set()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One entry per step so far: what the action measured."""
        return list(self._metrics)

    @property
    def seconds(self) -> float:
        """Wall time of the run in this process, so far or in all."""
        return self._seconds if self._seconds is not None else time.monotonic() - self._began

    def record(self, kind: str, **data: Any) -> None:
        """Write an event to the run's log; ``step`` events are its metrics too (the action calls this)."""
        if self._log is None:
            raise MintbookError(f"Run {self.id} has not been started, so it has no log to write to.")
        self._log.append(kind, **data)
        if kind == "step":
            self._metrics.append(data)

    def progress(self, note: str, done: float = 0, total: float = 0) -> None:
        """Say what the run is doing and how far it is (the action calls this)."""
        if total != self._state["total"] or done < self._state["done"]:
            self._phase_began = time.monotonic()
            self._phase_from = done
        self._state = {"done": done, "total": total, "note": note}

    def describe(self, name: str, value: Value) -> None:
        """Put a fact about the run on its card (the action calls this)."""
        self._facts.append((name, value))

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps after ``step``: a resumed run will make them again (the action calls this)."""
        self._metrics = [entry for entry in self._metrics if entry["step"] <= step]

    def stop(self) -> None:
        """Ask the run to end at its next step, with its state saved; returns at once."""
        self._stopping.set()

    def end(self) -> None:
        """Stop the run and wait, in silence, until it has ended."""
        self.stop()
        self._ended.wait()

    def wait(self, timeout: float | None = None) -> T:
        """Show progress until the run ends and return its result.

        Raises `RunFailed` (with the cause) or `RunStopped`, and `TimeoutError` after ``timeout`` seconds; the run goes
        on then. A keyboard interrupt stops the run, waits for its state to be saved, and is raised again.
        """
        until = None if timeout is None else time.monotonic() + timeout
        with Live() as live:
            try:
                while not self._ended.wait(0.25):
                    live.show(self.card, self._line)
                    if until is not None and time.monotonic() > until:
                        raise TimeoutError(f"Run {self.id} is still going on after {timeout} s: {self._line()}")
            except KeyboardInterrupt:
                self.end()
                live.close(self.card, self._line)
                raise KeyboardInterrupt(str(self._error or f"{self.title} had ended just before.")) from None
            live.close(self.card, self._line)
        if live.left_a_card:
            self._shown_in_cell = cell_number()
        return self.result()

    def result(self) -> T:
        """Wait in silence and return the result; raise as `wait` does."""
        self._ended.wait()
        if isinstance(self._error, MintbookError):
            raise self._error
        if self._error is not None:
            raise RunFailed(
                f"{self.title} (run {self.id}) ended with {type(self._error).__name__}: {self._error}"
            ) from (self._error)
        return self._result  # type: ignore[return-value]

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.get_running_loop().run_in_executor(None, self.result).__await__()

    def card(self) -> Card:
        """Return the run as it is now: state, numbers of the last step, curves."""
        facts: list[tuple[str, Value]] = [
            ("run", self.id),
            ("state", self._line()),
            ("time", seconds_text(self.seconds)),
            *self._facts,
        ]
        if self._metrics:
            last = self._metrics[-1]
            facts += [(name, f"{last[name]:.4g}") for name in (*CURVES, "grad_norm", "learning_rate") if name in last]
        blocks: list[Block] = [Facts(facts)]
        series = {
            name: [(float(e["step"]), float(e[name])) for e in self._metrics if name in e]
            for name in CURVES
            if any(name in e for e in self._metrics)
        }
        if series:
            blocks.append(Curve(series=series, x_label="step", y_label="nats per token"))
        if self._error is not None:
            blocks.append(Note(str(self._error)))
        return Card(self.title, "run", blocks, badge=self.status)

    def _line(self) -> str:
        if self.status != "running":
            return self.status
        done, total, note = self._state["done"], self._state["total"], self._state["note"]
        if not total:
            return str(note)
        new = done - self._phase_from
        left = (time.monotonic() - self._phase_began) / new * (total - done) if new else None
        rest = f", about {seconds_text(left)} left" if left is not None else ""
        return f"{note}: {done:g} of {total:g}{rest}"

    def _work(self, work: Callable[[Run[T]], T]) -> None:
        try:
            self._result = work(self)
        except BaseException as error:  # noqa: BLE001 — whoever waits for the run gets it whole
            self._error = error
        self._seconds = time.monotonic() - self._began
        status: Literal["done", "stopped", "failed"] = (
            "stopped" if isinstance(self._error, RunStopped) else "failed" if self._error else "done"
        )
        said = str(self._error) if self._error else None
        try:
            self.record("ended", status=status, error=said)
            self._store.update_run(self.id, status=status, result=self.outcome, error=said)
            if self._log is not None:
                self._log.close()
        except BaseException as error:  # noqa: BLE001 — a log that cannot be written must not leave a waiter hanging
            self._error = self._error or error
        finally:
            self._ended.set()

    def _repr_mimebundle_(
        self, include: Container[str] | None = None, exclude: Container[str] | None = None
    ) -> dict[str, Any]:
        """Return the card, or one line where the cell that waited shows the card already."""
        return {"text/plain": repr(self)} if self._shown_here else super()._repr_mimebundle_()

    def _repr_html_(self) -> str | None:
        return None if self._shown_here else super()._repr_html_()

    @property
    def _shown_here(self) -> bool:
        return self._shown_in_cell is not None and self._shown_in_cell == cell_number()

    def __repr__(self) -> str:
        return f"<Run {self.id} · {self.title} · {self._line()}>"
