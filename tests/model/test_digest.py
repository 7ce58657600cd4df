"""The identity of a base: everything that changes its answers changes it, and nothing else does."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from mintbook.errors import BaseUnavailable
from mintbook.model import digest as digest_module
from mintbook.model.digest import digest_folder, folder_stamp
from mintbook.model.renderer import Renderer
from mintbook.model.tiny_base import byte_tokenizer


@pytest.fixture
def folder(tiny_base_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base_folder, tmp_path / "base"))


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_names_paths_and_shards_do_not_matter(folder: Path) -> None:
    before = digest_folder(folder)
    rewrite(folder / "config.json", _name_or_path="elsewhere", transformers_version="9.9")
    rewrite(folder / "tokenizer_config.json", name_or_path="elsewhere", transformers_version="9.9")
    rewrite(folder / "generation_config.json", temperature=0.3, transformers_version="9.9")
    (folder / "README.md").write_text("words")
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    save_file({n: tensors[n] for n in names[::2]}, folder / "a.safetensors", metadata={"x": "y"})
    save_file({n: tensors[n] for n in names[1::2]}, folder / "b.safetensors")
    (folder / "model.safetensors").unlink()
    assert digest_folder(folder) == before


@pytest.mark.parametrize("part", ["weights", "config", "tokenizer", "template"])
def test_every_part_matters(folder: Path, part: str) -> None:
    before = digest_folder(folder)
    if part == "weights":
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"][0] += 1e-3
        save_file(tensors, folder / "model.safetensors")
    elif part == "config":
        rewrite(folder / "config.json", rms_norm_eps=1e-4)
    elif part == "tokenizer":
        rewrite(folder / "tokenizer.json", version="1.1")
    else:
        (folder / "chat_template.jinja").write_text("{{ messages }}")
    after = digest_folder(folder)
    assert getattr(after, part) != getattr(before, part)
    assert after.base != before.base


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tokenizer_config.json", {"add_bos_token": True}),
        ("tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"}),
        ("special_tokens_map.json", {"eos_token": "<|pad|>"}),
        ("added_tokens.json", {"<|mint|>": 260}),
        ("generation_config.json", {"eos_token_id": [2, 3]}),
    ],
)
def test_all_that_decides_tokens_and_ends_is_the_tokenizer(folder: Path, name: str, changes: dict[str, object]) -> None:
    if not (folder / name).is_file():
        (folder / name).write_text("{}")
    before = digest_folder(folder)
    rewrite(folder / name, **changes)
    after = digest_folder(folder)
    assert after.tokenizer != before.tokenizer
    assert (after.weights, after.config, after.template) == (before.weights, before.config, before.template)


def test_a_template_in_the_tokenizers_config_is_the_template(folder: Path) -> None:
    before = digest_folder(folder)
    rewrite(folder / "tokenizer_config.json", chat_template="{{ messages }}")
    after = digest_folder(folder)
    assert after.template != before.template
    assert after.tokenizer == before.tokenizer


def test_of_two_tensors_of_one_name_both_count(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, folder / "z.safetensors")
    before = digest_folder(folder)
    tensors["model.norm.weight"][0] += 1e-3
    save_file(tensors, folder / "model.safetensors")
    assert digest_folder(folder) != before


def test_the_renderers_digest_covers_the_ends_of_answers() -> None:
    usual, other = byte_tokenizer(), byte_tokenizer()
    other.eos_token = "<|pad|>"
    assert usual.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()
    assert Renderer(usual).end_ids != Renderer(other).end_ids
    assert Renderer(usual).digest != Renderer(other).digest


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", lambda path: cut(path, -8)),
        ("model.safetensors", lambda path: cut(path, 100)),
        ("model.safetensors", lambda path: cut(path, 4)),
        ("model.safetensors", lambda path: cut(path, 0)),
        ("model.safetensors", lambda path: path.write_bytes(path.read_bytes() + b"x")),
        ("model.safetensors", lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])),
        ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:8] + b"x" + path.read_bytes()[9:])),
        ("config.json", lambda path: cut(path, -5)),
        ("config.json", lambda path: path.write_text("[]")),
        ("config.json", lambda path: path.write_bytes(b'{"a": "\xff"}')),
        ("config.json", Path.unlink),
        ("tokenizer_config.json", lambda path: cut(path, -5)),
        ("generation_config.json", lambda path: path.write_text("3")),
        ("tokenizer.json", Path.unlink),
    ],
)
def test_what_is_missing_or_damaged_is_named(folder: Path, name: str, damage: Callable[[Path], object]) -> None:
    damage(folder / name)
    with pytest.raises(BaseUnavailable, match=re.escape(name)):
        digest_folder(folder)


def test_weights_that_end_while_they_are_read_are_no_base(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(folder / "model.safetensors", -8)
    monkeypatch.setattr(digest_module, "safe_open", lambda file, framework: nullcontext())
    with pytest.raises(BaseUnavailable, match=r"model\.safetensors ends 8 bytes before its tensor"):
        digest_folder(folder)


def test_the_stamp_follows_what_the_digest_reads_and_nothing_else(folder: Path) -> None:
    first = folder_stamp(folder)
    assert {name for name, _, _ in first} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert (
        "config.json",
        (folder / "config.json").stat().st_size,
        (folder / "config.json").stat().st_mtime_ns,
    ) in first
    (folder / "README.md").write_text("words")
    assert folder_stamp(folder) == first
    weights = folder / "model.safetensors"
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))
    second = folder_stamp(folder)
    assert second != first
    (folder / "added_tokens.json").write_text("{}")
    assert folder_stamp(folder) != second
    shutil.rmtree(folder)
    assert folder_stamp(folder) == ()


def test_pickled_weights_are_no_base(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BaseUnavailable, match="safetensors"):
        digest_folder(folder)
