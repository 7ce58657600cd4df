"""A reader of GGUF files that trusts nothing: every count, length and offset is held against the file's size."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from mintbook.errors import FormatError, nearest

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_DEEPEST_ARRAY = 4
_MOST_DIMENSIONS = 4
_LARGEST_ALIGNMENT = 1 << 16
_LONGEST_NAME = 1 << 16


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies: ``shape`` in numpy's order (rows first), ``start`` and ``size`` in bytes of the file."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The metadata and tensors of one GGUF file, mapped and not read until asked for."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    _bytes: NDArray[np.uint8]

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Return a tensor de-quantised to fp32; raise `FormatError` when it is absent or cannot be de-quantised."""
        info = self.tensors.get(name)
        if info is None:
            raise FormatError(f"{self.path} has no tensor {name!r}.{nearest(name, self.tensors)}")
        raw = np.asarray(self._bytes[info.start : info.start + info.size])
        if info.kind is GGMLQuantizationType.F32:
            return raw.view(np.float32).reshape(info.shape)
        try:
            values = dequantize(raw.reshape(*info.shape[:-1], -1), info.kind)
        except NotImplementedError as error:
            raise FormatError(
                f"{self.path}: tensor {name!r} is {info.kind.name}, which cannot be de-quantised."
            ) from error
        return np.asarray(values, dtype=np.float32).reshape(info.shape)


def read_gguf(path: Path) -> GgufFile:
    """Read header, metadata and tensor table of a GGUF file (version 2 or 3); raise `FormatError` when it is broken."""
    try:
        data = np.memmap(path, mode="r", dtype=np.uint8)
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be read as a GGUF file: {error}.") from error
    cursor = _Cursor(path, data.data)
    if cursor.take(4) != b"GGUF":
        raise FormatError(f"{path} is not a GGUF file: it does not begin with the letters GGUF.")
    version = cursor.scalar("<I")
    if version not in (2, 3):
        raise FormatError(f"{path} is GGUF version {version}; versions 2 and 3 are read.")
    tensors, keys = cursor.count(24), cursor.count(13)
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        key = cursor.string(_LONGEST_NAME)
        if key in metadata:
            raise FormatError(f"{path} gives the metadata {key!r} twice.")
        metadata[key] = cursor.value(cursor.scalar("<I"))
    rows = [cursor.tensor_row() for _ in range(tensors)]
    return GgufFile(path, metadata, _place(path, rows, metadata, cursor.at, len(data)), data)


def _place(
    path: Path, rows: list[tuple[str, tuple[int, ...], int, int]], metadata: Mapping[str, Any], end: int, size: int
) -> dict[str, TensorInfo]:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= _LARGEST_ALIGNMENT:
        raise FormatError(f"{path} asks for an alignment of {alignment!r}; it must be 1 to {_LARGEST_ALIGNMENT}.")
    start = -(-end // alignment) * alignment
    placed: dict[str, TensorInfo] = {}
    for name, shape, code, offset in rows:
        if name in placed:
            raise FormatError(f"{path} holds the tensor {name!r} twice.")
        try:
            kind = GGMLQuantizationType(code)
            block, block_bytes = GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError) as error:
            raise FormatError(f"{path}: tensor {name!r} has the unknown kind {code}.") from error
        if shape[-1] % block:
            raise FormatError(
                f"{path}: rows of {name!r} hold {shape[-1]} numbers; {kind.name} needs a multiple of {block}."
            )
        length = math.prod(shape) // block * block_bytes
        if offset % alignment or start + offset + length > size:
            raise FormatError(
                f"{path}: tensor {name!r} is said to lie at bytes {start + offset} to {start + offset + length}, "
                f"the file has {size}; it is truncated or broken."
            )
        placed[name] = TensorInfo(name, shape, kind, start + offset, length)
    return placed


class _Cursor:
    """A position in the file that refuses to pass its end."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path, self.data, self.at = path, data, 0

    def take(self, length: int) -> bytes:
        if length > len(self.data) - self.at:
            raise FormatError(
                f"{self.path} ends at byte {len(self.data)}, but {length} bytes are announced at byte {self.at}; "
                "it is truncated or broken."
            )
        self.at += length
        return bytes(self.data[self.at - length : self.at])

    def scalar(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self, least: int) -> int:
        """Read a number of things, each of which takes at least ``least`` bytes."""
        number = int(self.scalar("<Q"))
        if number * least > len(self.data) - self.at:
            raise FormatError(
                f"{self.path} ends at byte {len(self.data)}, but {number} items are announced at byte {self.at - 8}; "
                "it is truncated or broken."
            )
        return number

    def string(self, longest: int | None = None) -> str:
        length = self.count(1)
        if longest is not None and length > longest:
            raise FormatError(f"{self.path} has a name of {length} bytes at byte {self.at}; {longest} are allowed.")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(
                f"{self.path} has text that is not UTF-8 before byte {self.at}: {error.reason}."
            ) from error

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind != _ARRAY:
            raise FormatError(f"{self.path} has a metadata value of the unknown kind {kind} at byte {self.at}.")
        if depth == _DEEPEST_ARRAY:
            raise FormatError(f"{self.path} nests metadata arrays more than {_DEEPEST_ARRAY} deep.")
        inner = self.scalar("<I")
        if inner in _SCALARS:
            form = _SCALARS[inner]
            length = self.count(struct.calcsize(form))
            return list(struct.unpack(f"<{length}{form[1]}", self.take(length * struct.calcsize(form))))
        return [self.value(inner, depth + 1) for _ in range(self.count(8))]

    def tensor_row(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.string(_LONGEST_NAME)
        dimensions = self.scalar("<I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise FormatError(
                f"{self.path}: tensor {name!r} has {dimensions} dimensions; 1 to {_MOST_DIMENSIONS} are read."
            )
        shape = tuple(int(self.scalar("<Q")) for _ in range(dimensions))[::-1]
        if 0 in shape:
            raise FormatError(f"{self.path}: tensor {name!r} has the shape {list(shape)}, which holds nothing.")
        return name, shape, int(self.scalar("<I")), int(self.scalar("<Q"))
