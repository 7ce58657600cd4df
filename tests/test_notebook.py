"""Notebooks run headless: the story is told, the page is saved, also when a cell fails or the kernel dies."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from mintbook import notebook as module
from mintbook.errors import ConfigError, RunFailed
from mintbook.notebook import execute_notebook


def write(path: Path, *cells: str) -> Path:
    made = nbformat.v4.new_notebook()
    made.cells = [nbformat.v4.new_markdown_cell("# A story"), *map(nbformat.v4.new_code_cell, cells)]
    nbformat.write(made, path)
    return path


def test_a_story_is_told_and_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.2)
    notebook = write(tmp_path / "a.ipynb", "print('hello')", "import time; time.sleep(0.7); 6 * 7")
    page = execute_notebook(notebook, tmp_path / "out")
    told = capsys.readouterr()
    for part in ("# A story", "> print('hello')", "hello", "42", "wall time", "peak memory"):
        assert part in told.out
    assert "cell 3 of 3" in told.err
    assert "42" in page.read_text()


@pytest.mark.parametrize(("cell", "said"), [("1 / 0", "ZeroDivisionError"), ("import os; os._exit(1)", "died")])
def test_a_failing_cell_is_an_error_and_the_page_is_there(tmp_path: Path, cell: str, said: str) -> None:
    notebook = write(tmp_path / "a.ipynb", "print('before')", cell)
    with pytest.raises(RunFailed, match=said):
        execute_notebook(notebook, tmp_path / "out")
    assert "before" in (tmp_path / "out" / "a.html").read_text()


def test_a_notebook_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no notebook .*nowhere\.ipynb"):
        execute_notebook(tmp_path / "nowhere.ipynb", tmp_path)
