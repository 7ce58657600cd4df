"""The identity of a base: everything that changes its answers changes it, and nothing else does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from mintbook.errors import BaseUnavailable
from mintbook.model.digest import digest_folder


@pytest.fixture
def folder(tiny_base_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base_folder, tmp_path / "base"))


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_names_paths_and_shards_do_not_matter(folder: Path) -> None:
    before = digest_folder(folder)
    rewrite(folder / "config.json", _name_or_path="elsewhere", transformers_version="9.9")
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


def test_pickled_weights_are_no_base(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BaseUnavailable, match="safetensors"):
        digest_folder(folder)
