"""What makes a base this base: one digest over weights, config, tokenizer and chat template."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mintbook.errors import BaseUnavailable

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
INCIDENTAL = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
"""Keys of config.json that do not change what the model computes from the same weights."""


@dataclass(frozen=True, slots=True)
class BaseDigest:
    """sha256 of the parts of a model folder, and of all of them together (``base``)."""

    weights: str
    config: str
    tokenizer: str
    template: str

    @property
    def base(self) -> str:
        """The identity of the base: what revisions and scores name."""
        return _sha(f"{self.weights} {self.config} {self.tokenizer} {self.template}".encode())


def digest_folder(folder: Path) -> BaseDigest:
    """Read a model folder once and return its digests.

    Weights are hashed tensor by tensor in the order of their names, as stored, so that the same tensors in other shards
    are the same base. Raises `BaseUnavailable` when the folder has no safetensors weights or no config.
    """
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise BaseUnavailable(f"{folder} has no config.json. A base is a Hugging Face model folder.")
    config = {k: v for k, v in json.loads(config_file.read_text()).items() if k not in INCIDENTAL}
    return BaseDigest(
        weights=_weights_digest(folder),
        config=_sha(json.dumps(config, sort_keys=True).encode()),
        tokenizer=_files_digest(folder, TOKENIZER_FILES),
        template=_template_digest(folder),
    )


def _weights_digest(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BaseUnavailable(
            f"{folder} has no *.safetensors file. "
            "mintbook reads weights from safetensors only; convert the model first."
        )
    tensors = {tensor.name: tensor for file in files for tensor in _tensors(file)}
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name} {tensor.form}".encode())
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.start)
            size = tensor.size
            while size and (chunk := stream.read(min(size, 1 << 22))):
                sha.update(chunk)
                size -= len(chunk)
    return sha.hexdigest()


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where a tensor's bytes lie in a safetensors file, and its dtype and shape."""

    name: str
    file: Path
    form: str
    start: int
    size: int


def _tensors(file: Path) -> Iterator[_Stored]:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            yield _Stored(name, file, f"{entry['dtype']} {entry['shape']}", 8 + length + start, end - start)


def _files_digest(folder: Path, names: tuple[str, ...]) -> str:
    sha = hashlib.sha256()
    for name in names:
        if (folder / name).is_file():
            sha.update(name.encode() + (folder / name).read_bytes())
    return sha.hexdigest()


def _template_digest(folder: Path) -> str:
    inline = folder / "tokenizer_config.json"
    template = json.loads(inline.read_text()).get("chat_template") if inline.is_file() else None
    return _sha(_files_digest(folder, TEMPLATE_FILES).encode() + json.dumps(template).encode())


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def folder_stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return name, size and time of change of every file of a model folder: cheap, and other when one was rewritten."""
    found = ((path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file())
    return tuple((name, status.st_size, status.st_mtime_ns) for name, status in found)
