"""Loading a base: what is damaged, missing or cannot be used is named before anything runs on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mintbook.errors import BaseUnavailable, BaseUnsupported, ConfigError
from mintbook.model import fidelity
from mintbook.model.base import Base, device_of, load_base


@pytest.fixture
def folder(tiny_base_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base_folder, tmp_path / "base"))


def load(folder: Path) -> Base:
    return load_base(folder, dtype="float32", device="cpu")


def test_a_base_is_frozen_and_as_faithful_as_it_must_be(folder: Path) -> None:
    (folder / "provenance.json").write_text(json.dumps({"package": "somewhere"}))
    base = load(folder)
    assert (base.name, base.dtype, base.max_length) == ("base", "float32", 512)
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert max(base.fidelity.prefill, base.fidelity.decode) <= base.fidelity.tolerance == 1e-4
    assert base.source == {"package": "somewhere"}


@pytest.mark.parametrize("device", ["gpu", "", "mps", None])
def test_a_device_that_is_none_is_refused(folder: Path, device: Any) -> None:
    with pytest.raises(ConfigError, match="mintbook runs on 'cpu' and 'cuda'"):
        load_base(folder, dtype="float32", device=device)


def test_a_device_that_is_not_here_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="Use device='cpu'"):
        load_base(folder, dtype="float32", device="cuda")


@pytest.mark.parametrize(("count", "said"), [(1, "there is 1 device here"), (2, "there are 2 devices here")])
def test_a_number_beyond_the_devices_that_are_here_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, count: int, said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: count - 1)
    with pytest.raises(ConfigError, match=f"{said}, numbered from 0. Use one of 'cuda:0'"):
        load_base(folder, dtype="float32", device="cuda:9")
    assert str(device_of("cuda")) == str(device_of(f"cuda:{count - 1}")) == f"cuda:{count - 1}"


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "model.safetensors").write_bytes(b"\x00" * 64), r"model\.safetensors is cut short or damaged"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json cannot be read as JSON"),
        (lambda f: (f / "provenance.json").write_text("{"), r"provenance\.json cannot be read as JSON"),
        (lambda f: (f / "tokenizer.json").unlink(), r"has no tokenizer, which is one of tokenizer\.json"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "cannot read the tokenizer in"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot read the tokenizer in"),
        (lambda f: (f / "tokenizer.json").write_text("[]"), "cannot read the tokenizer in"),
        (drop_tensor, r"lack 1 of the tensors of a LlamaForCausalLM, such as 'model\.norm\.weight'"),
        (lambda f: change_config(f, intermediate_size=64), "as a causal language model"),
        (lambda f: change_config(f, model_type="no such"), "as a causal language model"),
    ],
)
def test_a_damaged_base_is_refused_with_what_is_wrong(
    folder: Path, damage: Callable[[Path], object], said: str
) -> None:
    damage(folder)
    with pytest.raises(BaseUnavailable, match=said) as caught:
        load(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("which", ["prefill", "decode"])
def test_a_forward_that_gives_no_number_is_not_faithful(
    folder: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = fidelity._packed

    def spoilt(*given: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        prefill, decode = packed(*given)
        part = prefill if which == "prefill" else decode
        part[1] = torch.full_like(part[1], torch.nan)
        return prefill, decode

    monkeypatch.setattr(fidelity, "_packed", spoilt)
    with pytest.raises(BaseUnsupported, match=r"at most 1e-04 is allowed in float32"):
        load(folder)
