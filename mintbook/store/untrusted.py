"""Files from strangers: what is checked before any of them is opened by a library."""

from __future__ import annotations

import stat
import struct
from pathlib import Path

from mintbook.errors import FormatError

_LARGEST_HEADER = 8 << 20


def ordinary_file(folder: Path, name: str) -> Path:
    """Return the path of a file that lies in ``folder`` itself; raise `FormatError` for links out of it and devices."""
    path = folder / name
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise FormatError(f"{folder} has no readable {name}: {error.strerror}.") from error
    if not path.resolve().is_relative_to(folder.resolve()):
        raise FormatError(f"{path} is a link that leads out of its folder. Copy the folder with its links followed.")
    if not stat.S_ISREG(mode):
        raise FormatError(f"{path} is not an ordinary file.")
    return path


def check_safetensors_header(path: Path) -> None:
    """Raise `FormatError` when the header is longer than the file or than any honest one, before it is parsed."""
    with path.open("rb") as file:
        start = file.read(8)
    announced = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    room = max(0, min(_LARGEST_HEADER, path.stat().st_size - 8))
    if not 0 < announced <= room:
        raise FormatError(
            f"{path} is not a readable safetensors file: it announces a header of {announced} bytes, {room} can be."
        )
