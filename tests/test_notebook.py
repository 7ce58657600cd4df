"""Notebooks run headless: the story is told, the page is saved, also when a cell fails or the kernel dies."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
import pytest

from mintbook import cli
from mintbook import notebook as module
from mintbook.errors import ConfigError, RunFailed
from mintbook.model import default_base
from mintbook.notebook import execute_notebook

SHOWING = """
import time
from mintbook.display import Card, Facts, live
live.PATIENCE_S = live.NOTEBOOK_EVERY_S = 0.0
with live.Live() as shown:
    shown.line("asking", 0.5)
    time.sleep(0.7)
    shown.show(lambda: Card("Training", "run", [Facts([("state", "step: 2 of 9"), ("time", "1 s")])]), str)
    time.sleep(0.7)
6 * 7
"""


def write(path: Path, *cells: str) -> Path:
    made = nbformat.v4.new_notebook()
    made.cells = [nbformat.v4.new_markdown_cell("# A story"), *map(nbformat.v4.new_code_cell, cells)]
    nbformat.write(made, path)
    return path


def test_a_story_is_told_and_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.2)
    page = execute_notebook(write(tmp_path / "a.ipynb", "print('hello')", SHOWING), tmp_path / "out")
    told = capsys.readouterr()
    for part in ("# A story", "> print('hello')", "\nhello\n", "\n42\n", "wall time", "peak memory"):
        assert part in told.out
    said = [line.partition(": ")[2] for line in told.err.splitlines() if line.startswith("… cell 3 of 3, for ")]
    assert "asking: 50%" in said
    assert "step: 2 of 9" in said
    assert "\nasking" not in told.out, "a passing line is gone when its cell has ended"
    assert "42" in page.read_text()


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import os; os._exit(1)", "died"),
        ("import time; time.sleep(30)", "timed out"),
    ],
)
def test_a_failing_cell_is_an_error_and_the_page_is_there(
    tmp_path: Path, cell: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CELL_TIMEOUT_S", 3)
    notebook = write(tmp_path / "a.ipynb", "print('before')", cell)
    with pytest.raises(RunFailed, match=said):
        execute_notebook(notebook, tmp_path / "out")
    assert "before" in (tmp_path / "out" / "a.html").read_text()


def test_what_cannot_be_run_is_said_before_a_base_is_obtained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def obtain(**_: object) -> Path:
        raise AssertionError

    monkeypatch.setattr(default_base, "obtain", obtain)
    with pytest.raises(ConfigError, match=r"no notebook .*nowhere\.ipynb"):
        execute_notebook(tmp_path / "nowhere.ipynb", tmp_path)
    assert cli.main(["demo", "--notebook", str(tmp_path / "nowhere.ipynb")]) == 1
    monkeypatch.setitem(sys.modules, "nbclient", None)
    assert cli.main(["demo", "--notebook", str(write(tmp_path / "a.ipynb"))]) == 1
    said = capsys.readouterr().err
    assert "nowhere.ipynb" in said
    assert "Not installed: nbclient. Install mintbook[notebook]" in said


@pytest.mark.parametrize("seeds", ["0", "-1", "three"])
def test_a_study_needs_a_seed(seeds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["study", "people", "--seeds", seeds])
    assert "--seeds" in capsys.readouterr().err
