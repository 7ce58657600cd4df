"""The wheel: it holds all that the checkout holds, and works where nothing else is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
DATA = [
    "mintbook/py.typed",
    "mintbook/display/style.css",
    "mintbook/evals/*.json",
    "mintbook/evals/*.txt",
    "mintbook/studies/*.json",
    "mintbook/train/anchors.json",
    "mintbook_kernels/*/triton_kernel.py",
    "mintbook_kernels/native/multi_lora.c",
    "mintbook-*.dist-info/licenses/LICENSE",
]
COMPILED = "mintbook_kernels/native/multi_lora.so"


def call(*command: str | Path, cwd: Path, **variables: str) -> str:
    ours = ("PYTHON", "MINTBOOK", "VIRTUAL_ENV")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | variables
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def built(out: Path, **variables: str) -> Path:
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, cwd=out, **variables)
    (made,) = out.glob("*.whl")
    return made


def files(wheel: Path) -> set[str]:
    with ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def bare_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bare")
    call(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    call(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    return python


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel: Path) -> None:
    held = files(wheel)
    expected = {
        str(path.relative_to(folder))
        for folder, package in ((ROOT, "mintbook"), (ROOT / "kernels", "mintbook_kernels"))
        for path in (folder / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }
    assert {name for name in held - {COMPILED} if ".dist-info/" not in name} == expected
    assert [pattern for pattern in DATA if not any(fnmatch(name, pattern) for name in held)] == []


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_compiled_op_is_in_the_wheel_which_is_for_this_platform(wheel: Path) -> None:
    assert COMPILED in files(wheel)
    assert "-py3-none-" in wheel.name and not wheel.name.endswith("-any.whl")


def test_without_a_compiler_the_wheel_is_made_without_the_op(tmp_path: Path) -> None:
    made = built(tmp_path, CC="no-such-compiler")
    assert made.name.endswith("-py3-none-any.whl") and COMPILED not in files(made)


def test_the_wheel_works_where_nothing_else_is_installed(bare_python: Path, tmp_path: Path) -> None:
    code = (
        "import importlib.util, mintbook, mintbook.errors, mintbook.config, mintbook.display; "
        "print(mintbook.__file__, importlib.util.find_spec('torch'), mintbook.TrainConfig().steps > 0); "
        "print(mintbook.display.Note('shown').text(width=20), len(mintbook.display.Card('a', 'b', []).html()) > 1000)"
    )
    where, torch, *answers = call(bare_python, "-c", code, cwd=tmp_path).split()
    assert Path(where).is_relative_to(bare_python.parents[1])
    assert (torch, answers) == ("None", ["True", "shown", "True"])


def test_the_command_says_its_version(bare_python: Path, wheel: Path, tmp_path: Path) -> None:
    version = wheel.name.split("-")[1]
    assert call(bare_python, "-m", "mintbook", "--version", cwd=tmp_path) == f"mintbook {version}\n"
    assert call(bare_python.parent / "mintbook", "--version", cwd=tmp_path) == f"mintbook {version}\n"
