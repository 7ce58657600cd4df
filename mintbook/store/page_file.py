"""The file of a page: one tensor after a header that names its layout, read in one go."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy
import torch
import xxhash

from mintbook.errors import FormatError
from mintbook.store.page import LAYOUT, Page, Site

Content = numpy.ndarray[Any, Any]
"""A file's bytes, uint8."""

_START = 8
"""Bytes of the header's length."""
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the numbers; revisions of one shape have the same header, byte for byte."""

    dtype: torch.dtype
    shape: tuple[int, int]
    sites: tuple[Site, ...]
    ranks: tuple[int, ...]
    scales: tuple[float, ...]

    @property
    def body_bytes(self) -> int:
        """Bytes of the numbers that follow."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize


def read_bytes(path: Path) -> Content:
    """Return a file's bytes in memory of their own, by one read straight into it."""
    with path.open("rb", buffering=0) as file:
        # torch's memory, not numpy's: numpy asks for huge pages, whose first touch takes milliseconds where free
        # memory is in pieces.
        content: Content = torch.empty(path.stat().st_size, dtype=torch.uint8).numpy()
        view, at = content.data, 0
        while at < len(view):
            count = file.readinto(view[at:])
            if not count:
                raise FormatError(f"{path} became shorter while it was read.")
            at += count
    return content


def checksum(content: Content) -> str:
    """Return the XXH3 checksum (64 bits) of bytes: it finds damage at the speed of memory, but no forgery."""
    return xxhash.xxh3_64_hexdigest(content.data)


def parse_page(content: Content, path: Path) -> Page:
    """Return the page whose file has this content, over the same memory.

    Raises `FormatError` when it is broken or of another layout.
    """
    length = int.from_bytes(content[:_START].tobytes(), "little")
    body = _START + length
    if len(content) < _START or body > len(content):
        raise FormatError(f"{path} is not a readable page of adapter weights: it ends within its header.")
    try:
        header = _header(content[_START:body].tobytes())
    except FormatError as error:
        raise FormatError(f"{path} {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path} is not a readable page of adapter weights: {error!r}.") from error
    if len(content) - body != header.body_bytes or body % header.dtype.itemsize:
        raise FormatError(
            f"{path} has {len(content) - body} bytes of weights; its header announces {header.body_bytes}."
        )
    tensor = torch.from_numpy(content)[body:].view(header.dtype).view(header.shape)
    return Page(tensor=tensor, sites=header.sites, ranks=header.ranks, scales=header.scales)


@lru_cache(maxsize=256)
def _header(text: bytes) -> Header:
    """Parse a header once for all the files that have it."""
    said = json.loads(text)
    layout = json.loads(said.get("__metadata__", {}).get("mintbook", "{}"))
    if layout.get("layout") != LAYOUT:
        raise FormatError(f"has layout {layout.get('layout')!r}; this version reads {LAYOUT!r}.")
    about = said["page"]
    rows, columns = about["shape"]
    header = Header(
        dtype=_DTYPES[about["dtype"]],
        shape=(int(rows), int(columns)),
        sites=tuple(Site(name, h, o) for name, h, o in layout["sites"]),
        ranks=tuple(layout["ranks"]),
        scales=tuple(layout["scales"]),
    )
    if len(said) != 2 or about["data_offsets"] != [0, header.body_bytes]:
        raise FormatError("holds more than one tensor, or a gap.")
    return header
