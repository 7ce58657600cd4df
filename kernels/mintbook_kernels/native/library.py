"""The compiled op: where it lies, whether it can be used here, and with which instructions."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

PATH = Path(__file__).with_name("multi_lora.so")
ABI = 1
DTYPES = (torch.bfloat16, torch.float32)
"""The precisions that the op takes."""
LEVELS = ("the compiler's baseline", "AVX2", "AVX512", "AVX512-BF16")
"""By `Library.level`: the instructions that the op was found to have on this machine."""


@dataclass(frozen=True, slots=True)
class Library:
    """The loaded op."""

    add_update: Callable[..., int]
    """``mintbook_add_update`` of multi_lora.c."""
    paged_attention: Callable[[bytes, int | None], int]
    """``mintbook_paged_attention`` of paged_attention.c."""
    level: int
    """The index in `LEVELS` of the instructions in use."""
    parallel: int | None
    """The address of ``GOMP_parallel`` in torch's own OpenMP runtime; ``None``: the op runs on one thread."""


def available() -> bool:
    """Say whether the compiled op can be used here."""
    return isinstance(_load(), Library)


def why_missing() -> str | None:
    """Say why the compiled op cannot be used here; ``None`` when it can."""
    found = _load()
    return found if isinstance(found, str) else None


def features() -> str:
    """Name the instructions and the threading of the compiled op; raises `OSError` when it is missing."""
    found = library()
    return LEVELS[found.level] + ("" if found.parallel else ", one thread")


def library() -> Library:
    """Return the loaded op; raises `OSError` when it is missing."""
    found = _load()
    if isinstance(found, str):
        raise OSError(f"The compiled op cannot be used: {found}.")
    return found


@cache
def _load() -> Library | str:
    if not PATH.exists():
        return "it was not compiled when mintbook was installed (no C compiler was found, or it failed)"
    try:
        loaded = ctypes.CDLL(str(PATH))
        found, attention = loaded.mintbook_abi(), loaded.mintbook_paged_attention
    except (OSError, AttributeError) as error:
        return f"{PATH.name} cannot be loaded ({error})"
    if found != ABI:
        return f"{PATH.name} was compiled from another version of mintbook; install it again"
    function = loaded.mintbook_add_update
    word, pointer, number = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int
    function.argtypes = (
        *(pointer, pointer, word, pointer, word, pointer, pointer, word),
        *(number, number, ctypes.c_double, pointer),
    )
    attention.argtypes, attention.restype = (pointer, pointer), word
    return Library(function, attention, loaded.mintbook_level(), _openmp())


def _openmp() -> int | None:
    """Find ``GOMP_parallel`` of the runtime that is already loaded: a second one's threads would fight with its."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    for line in maps.read_text(encoding="utf-8").splitlines():
        path = line.split(maxsplit=5)[-1]
        if not any(name in Path(path).name for name in ("libgomp", "libomp", "libiomp")):
            continue
        try:
            runtime = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            return ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None
