"""Compiles the kernels' CPU op while a wheel is built; without a C compiler the wheel is built without it.

``python hatch_build.py`` compiles it beside its source, for work in a checkout that is not installed.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a script, where nothing but Python is needed
    BuildHookInterface = None

ROOT = Path(__file__).parent
FOLDER = Path("kernels/mintbook_kernels/native")
SOURCES = ("multi_lora.c", "paged_attention.c")
NAME = "multi_lora.so"
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wno-psabi")
SECONDS = 300


def compile_op(folder: Path) -> str | None:
    """Write ``multi_lora.so`` into a folder with ``cc`` or the compiler that CC names; return why not, if not."""
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        made = Path(beside) / NAME
        try:
            done = subprocess.run(
                [*compiler, *FLAGS, "-o", str(made), *(str(ROOT / FOLDER / source) for source in SOURCES)],
                capture_output=True,
                text=True,
                check=False,
                timeout=SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"the C compiler {compiler[0]!r} could not be run ({error})"
        if done.returncode != 0:
            return f"the C compiler {compiler[0]!r} failed:\n{done.stderr.strip()}"
        made.replace(folder / NAME)
    return None


if BuildHookInterface is not None:

    class CompiledOp(BuildHookInterface):  # type: ignore[type-arg, misc, unused-ignore]
        """Puts the op into the wheel, or beside its source for an editable install."""

        PLUGIN_NAME = "custom"

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """Compile the op; on success the wheel is tagged for this platform, for any Python 3."""
            if self.target_name != "wheel":
                return
            if version == "editable":
                folder = ROOT / FOLDER
            else:
                self._scratch = tempfile.TemporaryDirectory()
                folder = Path(self._scratch.name)  # kept until the wheel is written
            failed = compile_op(folder)
            if failed:
                self.app.display_warning(f"mintbook is built without its compiled CPU op, which is slower: {failed}")
                return
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform()}"
            if version != "editable":
                build_data["force_include"][str(folder / NAME)] = f"mintbook_kernels/native/{NAME}"


def platform() -> str:
    """Return this machine's platform as a wheel's name says it."""
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


if __name__ == "__main__":
    sys.exit(compile_op(ROOT / FOLDER))
