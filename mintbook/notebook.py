"""A notebook executed headless: its story in the terminal, its page in a file, its cost at the end."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mintbook.display.quantity import bytes_text, seconds_text
from mintbook.errors import ConfigError, RunFailed

CELL_TIMEOUT_S = 1200


def execute_notebook(notebook: Path, out: Path) -> Path:
    """Run every cell in a fresh kernel, print text and outputs as they come, and save the notebook as an HTML page.

    Prints the wall time and the kernel's peak memory. Raises `ConfigError` when there is no such notebook, and
    `RunFailed` when a cell fails; the page with the cells so far is saved then too.
    """
    if not notebook.is_file():
        raise ConfigError(
            f"There is no notebook {notebook}. Run this from a checkout of the project, or give its path."
        )
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    from nbconvert import HTMLExporter

    content = nbformat.read(notebook, as_version=4)
    client = NotebookClient(
        content,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(notebook.parent)}},
        on_cell_start=lambda cell, cell_index: _tell_source(cell),
        on_cell_executed=lambda cell, cell_index, execute_reply: _tell_outputs(cell),
    )
    began = time.monotonic()
    page = out / f"{notebook.stem}.html"
    try:
        client.execute()
    except CellExecutionError as error:
        raise RunFailed(f"{notebook.name} stopped at a failing cell; {page} shows it.\n{error}") from error
    except DeadKernelError as error:
        raise RunFailed(
            f"The kernel of {notebook.name} died, perhaps for want of memory; {page} has the cells so far."
        ) from error
    finally:
        out.mkdir(parents=True, exist_ok=True)
        page.write_text(HTMLExporter().from_notebook_node(content)[0], encoding="utf-8")
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(
        f"\n{notebook.name}: {seconds_text(seconds)} wall time, {bytes_text(peak)} peak memory of the kernel."
        f"\nPage: {page}"
    )
    return page


def _tell_source(cell: Mapping[str, Any]) -> None:
    if cell["cell_type"] == "markdown":
        print(f"\n{cell['source']}\n", flush=True)
    elif cell["source"].strip():
        print("\n".join(f"  > {line}" for line in cell["source"].splitlines()), flush=True)


def _tell_outputs(cell: Mapping[str, Any]) -> None:
    for output in cell.get("outputs", []):
        if output["output_type"] == "stream" and output["name"] == "stdout":
            print(output["text"].rstrip(), flush=True)
        elif "text/plain" in output.get("data", {}):
            print(output["data"]["text/plain"].rstrip(), flush=True)
