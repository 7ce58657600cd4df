"""The README tells the truth: every file has its line in the tree, the code compiles, every ``make`` word exists."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import mintbook
from mintbook.session import Session

ROOT = Path(__file__).parents[1]
FOLDERS = ("mintbook", "kernels", "notebooks", "binder", "extensions")
UNTOLD = {"__pycache__", ".ipynb_checkpoints", "node_modules"}
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def files_of(root: Path) -> set[str]:
    """Return what git tracks or would track; where there is no git, whatever is there."""
    if (root / ".git").exists() and shutil.which("git"):
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *FOLDERS]
        listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split("\0")
        paths = [root / name for name in listed if name]
    else:
        paths = [path for folder in FOLDERS for path in (root / folder).rglob("*") if not UNTOLD & set(path.parts)]
    return {str(path.relative_to(root)) for path in paths if path.is_file() and not needs_no_line(path)}


def needs_no_line(path: Path) -> bool:
    return path.name == "py.typed" or (path.name == "__init__.py" and not path.read_bytes().strip())


def tree_of(readme: str) -> dict[str, str]:
    """Return path and sentence of every line under "## The tree"; lines that begin with a folder are headings."""
    _, heading, rest = readme.partition("\n## The tree\n")
    block = next((text for language, text in FENCE.findall(rest.split("\n## ")[0]) if language == "text"), None)
    assert heading and block is not None, 'README.md has no ```text block under the heading "## The tree"'
    lines = [line.strip().partition(" ") for line in block.splitlines() if line.strip()]
    return {path: sentence.strip() for path, _, sentence in lines if not path.endswith("/")}


def proposed_lines(root: Path, paths: set[str]) -> str:
    """Return a line for each path, with the first sentence of its docstring, to be pasted into the tree and edited."""
    lines, width = [], max(map(len, paths), default=0)
    for path in sorted(paths):
        sentence = None
        if path.endswith(".py"):
            sentence = ast.get_docstring(ast.parse((root / path).read_text(encoding="utf-8")))
        lines.append(f"{path:<{width}}  {(sentence or '…').splitlines()[0]}")
    return "\n".join(lines)


def makes_of(text: str) -> set[str]:
    fences = FENCE.findall(text)
    shell = "\n".join(body for language, body in fences if language in ("", "sh", "bash", "shell", "console"))
    spans = re.findall(r"`(make [^`]+)`", FENCE.sub("", text))
    commands = "\n".join([shell, *spans]).replace("&&", "\n")
    return set(re.findall(r"^\s*(?:\$ )?make (?:[A-Z]+=\S+ )?([a-z][\w-]*)", commands, re.MULTILINE))


def test_every_file_has_its_line_in_the_tree() -> None:
    there, told = files_of(ROOT), tree_of(read("README.md"))
    assert len(there) > 50
    missing = there - set(told)
    assert not missing, f"lines that README.md lacks:\n{proposed_lines(ROOT, missing)}"
    assert not set(told) - there, f"lines without a file: {sorted(set(told) - there)}"
    assert [path for path, sentence in told.items() if not sentence] == []


def test_the_journey_compiles_and_uses_the_front_door() -> None:
    blocks = [body for language, body in FENCE.findall(read("README.md")) if language == "python"]
    assert blocks, "README.md has no ```python block"
    for block in blocks:
        attributes = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Attribute)]
        assert {node.attr for node in attributes if ast.unparse(node.value) == "mb"} <= set(mintbook.__all__)


def test_the_journey_runs(
    open_session: Callable[..., Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mintbook, "Session", open_session)
    names: dict[str, object] = {}  # one block goes on where the one before ended
    for language, body in FENCE.findall(read("README.md")):
        if language == "python":
            exec(compile(body, "README.md", "exec"), names)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_every_make_word_exists(name: str) -> None:
    words = makes_of(read(name))
    assert words, f"{name} names no make target"
    assert words <= set(re.findall(r"^([a-z][\w-]*):", read("Makefile"), re.MULTILINE))


README = """# x

## The tree

```text
mintbook/            what one imports
  mintbook/fleet.py    Every record, asked together.
mintbook/gone.py     Was here.
mintbook/dumb.py
```

## Next

```sh
make demo && make lab
$ make test
```
`make check` makes; make nothing. `make PYTHON=python3.12 unit`
"""


def test_the_parsers_see_what_is_written(tmp_path: Path) -> None:
    assert tree_of(README) == {
        "mintbook/fleet.py": "Every record, asked together.",
        "mintbook/gone.py": "Was here.",
        "mintbook/dumb.py": "",
    }
    assert makes_of(README) == {"demo", "lab", "test", "check", "unit"}
    with pytest.raises(AssertionError, match="no ```text block"):
        tree_of("# x\n\n## The tree\n\n```python\n```\n")


def test_files_are_found_without_git(tmp_path: Path) -> None:
    untold = ("mintbook/py.typed", "mintbook/store/__init__.py", "mintbook/__pycache__/x.pyc", "tests/x.py")
    for name in ("mintbook/fleet.py", *untold):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "mintbook/fleet.py").write_text('"""Every record."""\n')
    (tmp_path / "mintbook/__init__.py").write_text('"""The front door."""\n')
    assert files_of(tmp_path) == {"mintbook/fleet.py", "mintbook/__init__.py"}
    assert proposed_lines(tmp_path, {"mintbook/fleet.py"}).split(maxsplit=1) == ["mintbook/fleet.py", "Every record."]
