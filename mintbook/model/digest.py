"""What makes a base this base: one digest over weights, config, tokenizer and chat template."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mintbook.errors import BaseUnavailable
from mintbook.store.filesystem import file_digest

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""A base has at least one of these."""
TOKENIZER_FILES = (*VOCABULARY_FILES, "merges.txt", "special_tokens_map.json", "added_tokens.json")
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
CONFIG, TOKENIZER_CONFIG, GENERATION_CONFIG = "config.json", "tokenizer_config.json", "generation_config.json"
INCIDENTAL = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
"""Keys of config.json that do not change what the model computes from the same weights."""
TOKENIZER_INCIDENTAL = ("name_or_path", "transformers_version", "chat_template")
"""Keys of tokenizer_config.json that do not change its tokens; the chat template has a digest of its own."""


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
    are the same base. Raises `BaseUnavailable`, naming the file, when the config, the tokenizer or the safetensors
    weights are missing or damaged.
    """
    if not (folder / CONFIG).is_file():
        raise BaseUnavailable(f"{folder} has no {CONFIG}. A base is a Hugging Face model folder.")
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        raise BaseUnavailable(
            f"{folder} has no tokenizer, which is one of {', '.join(VOCABULARY_FILES)}. Copy it from where the model "
            "came from."
        )
    config = read_json(folder / CONFIG)
    tokenizer = read_json(folder / TOKENIZER_CONFIG)
    generation = read_json(folder / GENERATION_CONFIG)
    return BaseDigest(
        config=_json_digest(_without(config, INCIDENTAL)),
        tokenizer=_json_digest(
            {
                "files": _file_digests(folder, TOKENIZER_FILES),
                "config": _without(tokenizer, TOKENIZER_INCIDENTAL),
                "ends": generation.get("eos_token_id"),
            }
        ),
        template=_json_digest(
            {"files": _file_digests(folder, TEMPLATE_FILES), "inline": tokenizer.get("chat_template")}
        ),
        weights=_weights_digest(folder),
    )


def folder_stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return name, size in bytes and time of change in ns of the files that `digest_folder` reads, in a fixed order.

    It is cheap, and another one when a file was rewritten, added or taken away. A folder that is gone has an empty one.
    """
    names = (CONFIG, TOKENIZER_CONFIG, GENERATION_CONFIG, *TOKENIZER_FILES, *TEMPLATE_FILES)
    files = [*(folder / name for name in names), *_weight_files(folder)]
    found = ((path.name, path.stat()) for path in files if path.is_file())
    return tuple((name, status.st_size, status.st_mtime_ns) for name, status in found)


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file, empty where there is no file; raise `BaseUnavailable` when it is damaged."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BaseUnavailable(f"{file} cannot be read as JSON: {error}. Get the file again.") from error
    if not isinstance(found, dict):
        raise BaseUnavailable(f"{file} holds a JSON {type(found).__name__}, not an object. Get the file again.")
    return found


def _weights_digest(folder: Path) -> str:
    files = _weight_files(folder)
    if not files:
        raise BaseUnavailable(
            f"{folder} has no *.safetensors file. "
            "mintbook reads weights from safetensors only; convert the model first."
        )
    sha = hashlib.sha256()
    # Not a mapping: a name that lies in two files counts twice, because either may be the one that is loaded.
    for tensor in sorted((tensor for file in files for tensor in _tensors(file)), key=lambda tensor: tensor.name):
        sha.update(f"{tensor.name} {tensor.form}".encode())
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.start)
            size = tensor.size
            while size and (chunk := stream.read(min(size, 1 << 22))):
                sha.update(chunk)
                size -= len(chunk)
        if size:
            raise BaseUnavailable(f"{tensor.file} ends {size} bytes before its tensor {tensor.name!r}. Get it again.")
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
    try:
        # Opening checks the header, that the tensors lie without gaps, and that the file is as long as they need.
        with safe_open(file, framework="pt"), file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
    except (SafetensorError, OSError) as error:
        raise BaseUnavailable(f"{file} is cut short or damaged: {error}. Get the file again.") from error
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            yield _Stored(name, file, f"{entry['dtype']} {entry['shape']}", 8 + length + start, end - start)


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _file_digests(folder: Path, names: Collection[str]) -> dict[str, str]:
    return {name: file_digest(folder / name) for name in names if (folder / name).is_file()}


def _without(found: dict[str, Any], incidental: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key not in incidental}


def _json_digest(value: object) -> str:
    return _sha(json.dumps(value, sort_keys=True).encode())


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
