"""A notebook executed headless: its story in the terminal, its page in a file, its cost at the end."""

from __future__ import annotations

import resource
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mintbook.display.quantity import bytes_text, seconds_text
from mintbook.errors import ConfigError, RunFailed

CELL_TIMEOUT_S = 1200
HEARTBEAT_S = 10.0
EXTRA = ("ipykernel", "nbclient", "nbconvert", "nbformat")


def check_runnable(notebook: Path) -> None:
    """Raise `ConfigError` when there is no such notebook, or when what runs notebooks is not installed."""
    if not notebook.is_file():
        raise ConfigError(
            f"There is no notebook {notebook}. Run this from a checkout of the project, or give its path."
        )
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise ConfigError(f"Not installed: {', '.join(missing)}. Install mintbook[notebook] to run notebooks.")


def execute_notebook(notebook: Path, out: Path) -> Path:
    """Run every cell in a fresh kernel, tell its text and outputs as they come, and save it all as an HTML page.

    A cell that takes long says so every ten seconds on stderr, with the state that it shows. Prints the wall time and
    the kernel's peak memory at the end. Raises as `check_runnable`, and `RunFailed` when a cell fails or takes more
    than twenty minutes, or the kernel dies; the page with the cells so far is saved then too.
    """
    check_runnable(notebook)
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from nbconvert import HTMLExporter

    content = nbformat.read(notebook, as_version=4)
    began = time.monotonic()
    page = out / f"{notebook.stem}.html"
    try:
        with _heartbeat(len(content.cells)) as beat:
            NotebookClient(
                content,
                timeout=CELL_TIMEOUT_S,
                kernel_name="python3",
                resources={"metadata": {"path": str(notebook.parent)}},
                on_cell_start=beat.start,
                on_cell_executed=lambda cell, cell_index, execute_reply: _tell_outputs(cell),
            ).execute()
    except (CellExecutionError, CellTimeoutError) as error:
        raise RunFailed(f"{notebook.name} stopped at a failing cell; {page} shows it.\n{error}") from error
    except DeadKernelError as error:
        died = f"The kernel of {notebook.name} died, perhaps for want of memory; {page} has the cells so far."
        raise RunFailed(died) from error
    finally:
        out.mkdir(parents=True, exist_ok=True)
        page.write_text(HTMLExporter().from_notebook_node(content)[0], encoding="utf-8")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    taken = seconds_text(time.monotonic() - began)
    print(f"\n{notebook.name}: {taken} wall time, {bytes_text(peak)} peak memory of the kernel.\nPage: {page}")
    return page


class _Beat:
    """Which cell runs, since when, and what it shows."""

    def __init__(self, cells: int) -> None:
        self.cells = cells
        self.index = 0
        self.cell: Mapping[str, Any] = {}
        self.began = time.monotonic()

    def start(self, cell: Mapping[str, Any], cell_index: int) -> None:
        self.cell, self.index, self.began = cell, cell_index, time.monotonic()
        _tell_source(cell)

    def line(self) -> str:
        where = f"… cell {self.index + 1} of {self.cells}, for {seconds_text(time.monotonic() - self.began)}"
        # The client keeps outputs as they come, and replaces a display that is updated.
        shown = [text for text in map(_text_of, self.cell.get("outputs", [])) if text]
        return f"{where}: {_state_in(shown[-1])}" if shown else where


@contextmanager
def _heartbeat(cells: int) -> Iterator[_Beat]:
    beat, over = _Beat(cells), threading.Event()

    def tell() -> None:
        while not over.wait(HEARTBEAT_S):
            if time.monotonic() - beat.began >= HEARTBEAT_S:
                print(beat.line(), file=sys.stderr, flush=True)

    teller = threading.Thread(target=tell, name="mintbook-heartbeat", daemon=True)
    teller.start()
    try:
        yield beat
    finally:
        over.set()
        teller.join()


def _tell_source(cell: Mapping[str, Any]) -> None:
    if cell["cell_type"] == "markdown":
        print(f"\n{cell['source']}\n", flush=True)
    elif cell["source"].strip():
        print("\n".join(f"  > {line}" for line in cell["source"].splitlines()), flush=True)


def _tell_outputs(cell: Mapping[str, Any]) -> None:
    for text in map(_text_of, cell.get("outputs", [])):
        if text:
            print(text, flush=True)


def _text_of(output: Mapping[str, Any]) -> str:
    if output["output_type"] == "stream":
        return str(output["text"]).rstrip() if output["name"] == "stdout" else ""
    return str(output.get("data", {}).get("text/plain", "")).rstrip()


def _state_in(text: str) -> str:
    """Return what a run's card has in its row "state", or else the last line."""
    lines = text.splitlines()
    states = [line.removeprefix("state ").strip() for line in lines if line.startswith("state ")]
    return (states or lines)[-1]
