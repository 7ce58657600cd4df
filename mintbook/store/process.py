"""Which process holds something, so that a dead one's hold can be told from a living one's."""

from __future__ import annotations

import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this machine, told apart from later ones that get the same pid by when it started."""

    pid: int
    started: str
    """When the process started, in the system's own unit."""
    boot: str
    """Which boot of the machine it belongs to."""
    namespace: str
    """Which numbering of pids its number belongs to: containers of one machine have their own."""
    host: str

    @classmethod
    def current(cls) -> Self:
        """Return the calling process."""
        return cls(
            pid=os.getpid(),
            started=_start(os.getpid()) or "",
            boot=_text(_PROC / "sys/kernel/random/boot_id"),
            namespace=_link(_PROC / "self/ns/pid"),
            host=socket.gethostname(),
        )

    def alive(self) -> bool:
        """Tell whether the process still runs; one that is hidden from here (another container) counts as running."""
        here = Process.current()
        if self.boot != here.boot:
            return False
        if self.namespace != here.namespace:
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        started = _start(self.pid)
        if started is None:
            # It exists, yet the system hides it from us: taking its hold away would be a guess.
            return not _zombie(self.pid)
        return started == self.started

    def __str__(self) -> str:
        """Return words for an error message."""
        return f"process {self.pid} on {self.host}"


def _stat(pid: int) -> list[str]:
    # The second field is the program's name in brackets and may hold spaces and brackets itself.
    return _text(_PROC / str(pid) / "stat").rpartition(")")[2].split()


def _zombie(pid: int) -> bool:
    return _stat(pid)[:1] in (["Z"], ["X"])


def _start(pid: int) -> str | None:
    if not (_PROC / "self/stat").exists():
        command = ["ps", "-o", "lstart=", "-p", str(pid)]
        listed = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
        return listed.stdout.strip() or None
    fields = _stat(pid)
    return None if not fields or _zombie(pid) else fields[19]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""
