from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from mintbook.errors import FormatError
from mintbook.model.gguf import read_gguf

RNG = np.random.default_rng(0)
FP32 = RNG.standard_normal((3, 64), dtype=np.float32)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_string("text", "naïve\n")
    writer.add_uint64("large", 2**40)
    writer.add_bool("flag", True)
    writer.add_array("words", ["a", "", "ccc"])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_tensor("plain", FP32)
    for kind in (gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F16):
        writer.add_tensor(kind.name, gguf.quantize(FP32, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_and_fp32_are_read_as_written(file: Path) -> None:
    model = read_gguf(file)
    expected = {"text": "naïve\n", "large": 2**40, "flag": True, "words": ["a", "", "ccc"], "numbers": [1, -2, 3]}
    assert {key: model.metadata[key] for key in expected} == expected
    assert np.array_equal(model.tensor("plain"), FP32)


def test_quantised_tensors_follow_the_equations_of_their_blocks(file: Path) -> None:
    model = read_gguf(file)
    data = file.read_bytes()

    def blocks(name: str, size: int) -> list[bytes]:
        info = model.tensors[name]
        return [data[at : at + size] for at in range(info.start, info.start + info.size, size)]

    q4 = []
    for block in blocks("Q4_1", 20):
        scale, least = np.frombuffer(block[:4], np.float16).astype(np.float32)
        nibbles = np.frombuffer(block[4:], np.uint8)
        q4.append(np.concatenate([nibbles & 15, nibbles >> 4]) * scale + least)
    assert np.array_equal(model.tensor("Q4_1"), np.concatenate(q4).reshape(3, 64))
    q8 = [
        np.frombuffer(b[2:], np.int8) * np.frombuffer(b[:2], np.float16).astype(np.float32) for b in blocks("Q8_0", 34)
    ]
    assert np.array_equal(model.tensor("Q8_0"), np.concatenate(q8).reshape(3, 64))
    assert np.abs(model.tensor("Q4_1") - FP32).max() < 0.25
    assert np.array_equal(model.tensor("F16"), FP32.astype(np.float16).astype(np.float32))


def test_an_unknown_tensor_is_named_with_its_nearest(file: Path) -> None:
    with pytest.raises(FormatError, match=r"'plane'.*Nearest: 'plain'"):
        read_gguf(file).tensor("plane")


def test_every_truncation_is_refused(file: Path) -> None:
    whole = file.read_bytes()
    for length in range(0, len(whole), 7):
        file.write_bytes(whole[:length])
        with pytest.raises(FormatError, match=r"model\.gguf"):
            read_gguf(file)


def test_damaged_headers_are_refused_or_read_but_never_anything_else(file: Path) -> None:
    whole = file.read_bytes()
    header = read_gguf(file).tensors["plain"].start
    refused = 0
    for _ in range(1000):
        damaged = bytearray(whole)
        for at in RNG.integers(0, header, size=RNG.integers(1, 4)):
            damaged[at] = RNG.integers(0, 256)
        file.write_bytes(damaged)
        try:
            model = read_gguf(file)
            for name in model.tensors:
                model.tensor(name)
        except FormatError:
            refused += 1
    assert refused > 200


def _written(path: Path, body: bytes, *, tensors: int = 0, keys: int = 1) -> Path:
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + body)
    return path


def _key(kind: int) -> bytes:
    return struct.pack("<Q", 1) + b"k" + struct.pack("<I", kind)


def _tensor(dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return struct.pack("<Q", 1) + b"t" + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


@pytest.mark.parametrize(
    ("body", "tensors", "keys", "why"),
    [
        (b"", 2**62, 0, "announced"),
        (b"", 0, 2**62, "announced"),
        (_key(8) + struct.pack("<Q", 2**63), 0, 1, "announced"),
        (_key(9) + struct.pack("<IQ", 4, 2**61), 0, 1, "announced"),
        (_key(9) + struct.pack("<IQ", 9, 1) * 9, 0, 1, "nests"),
        (_key(77), 0, 1, "unknown kind 77"),
        (_key(8) + struct.pack("<Q", 2) + b"\xff\xfe", 0, 1, "UTF-8"),
        ((_key(0) + b"\1") * 2, 0, 2, "twice"),
        (_tensor([2**40, 2**40]), 1, 0, "truncated"),
        (_tensor([0, 4]), 1, 0, "holds nothing"),
        (_tensor([1] * 9), 1, 0, "9 dimensions"),
        (_tensor([4], kind=999), 1, 0, "unknown kind 999"),
        (_tensor([33], kind=3), 1, 0, "multiple of 32"),
        (_tensor([4], offset=2**63), 1, 0, "truncated"),
        (_tensor([4], offset=4), 1, 0, "truncated or broken"),
    ],
)
def test_hostile_announcements_are_refused(tmp_path: Path, body: bytes, tensors: int, keys: int, why: str) -> None:
    with pytest.raises(FormatError, match=why):
        read_gguf(_written(tmp_path / "hostile.gguf", body + bytes(64), tensors=tensors, keys=keys))


def test_other_files_and_versions_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    with pytest.raises(FormatError, match="cannot be read"):
        read_gguf(other)
    other.write_bytes(b"PK\3\4" + bytes(100))
    with pytest.raises(FormatError, match="letters GGUF"):
        read_gguf(other)
    other.write_bytes(b"GGUF" + struct.pack("<I", 1) + bytes(100))
    with pytest.raises(FormatError, match="version 1"):
        read_gguf(other)
