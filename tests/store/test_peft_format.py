from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from mintbook.errors import AdapterError, FormatError, ShapeError, TargetError
from mintbook.model.tiny_base import write_tiny_base
from mintbook.store.page import Page, Site
from mintbook.store.peft_format import read_peft, write_peft

IDS = torch.arange(4, 44)[None]
PREFIX = "base_model.model."
Q0 = PREFIX + "model.layers.0.self_attn.q_proj"

BASE_DIGEST = "b" * 64


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("tiny"), architecture="qwen2")


def _model(base: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(base)


@pytest.fixture(scope="session")
def sites(base: Path) -> tuple[Site, ...]:
    return tuple(
        Site(name, module.in_features, module.out_features)
        for name, module in _model(base).named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    )


def _logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


def _merged(base: Path, page: Page) -> nn.Module:
    """The base with W + s·BA written into its weights, in fp64 and by hand."""
    model = _model(base)
    scales = dict(zip((site.name for site in page.sites), page.scales, strict=True))
    with torch.no_grad():
        for name, (a, bt) in page.factors().items():
            weight = model.get_submodule(name).weight
            weight.copy_(weight.double() + scales[name] * (bt.double().T @ a.double()))
    return model


def _peft_folder(base: Path, folder: Path, **options: Any) -> Path:
    """Make an adapter with PEFT, with random factors."""
    torch.manual_seed(1)
    options = {"target_modules": "all-linear", "r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"} | options
    model = get_peft_model(_model(base), LoraConfig(**options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _peft_folder(base, tmp_path_factory.mktemp("plain"))


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    return shutil.copytree(plain, tmp_path / "adapter")


def _rewrite(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def _page(sites: tuple[Site, ...], ranks: list[int], scales: list[float]) -> Page:
    generator = torch.Generator().manual_seed(3)
    page = Page(torch.zeros(max(ranks), sum(site.width for site in sites)), tuple(sites), tuple(ranks), tuple(scales))
    for a, bt in page.factors().values():
        a.normal_(std=0.1, generator=generator)
        bt.normal_(std=0.1, generator=generator)
    return page


MADE_BY_PEFT = {
    "plain": {},
    "rslora": {"use_rslora": True, "r": 6, "lora_alpha": 5},
    "attention": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"], "lora_dropout": 0.1},
    "expression": {"target_modules": r".*\.(q|up)_proj"},
    "full names": {"target_modules": ["model.layers.1.mlp.down_proj", "layers.0.self_attn.v_proj"]},
    "one layer": {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    "any lists": {"target_modules": ["q_proj"], "layers_to_transform": 0},
    "excluded": {"exclude_modules": ["layers.0.mlp.up_proj", "k_proj"]},
    "excluded by expression": {"exclude_modules": r".*layers\.0\..*"},
    "patterns": {
        "rank_pattern": {r"layers\.1\.mlp\..*": 7, "model.layers.0.self_attn.q_proj": 3, "q_proj": 2},
        "alpha_pattern": {"^model.layers.0.self_attn.v_proj": 3, "mlp.down_proj": 20, "down_proj": 1},
    },
    "rslora patterns": {"use_rslora": True, "rank_pattern": {"o_proj": 3}, "alpha_pattern": {"gate_proj": 2}},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "gaussian": {"init_lora_weights": "gaussian"},
}


@pytest.mark.parametrize("options", MADE_BY_PEFT.values(), ids=MADE_BY_PEFT.keys())
def test_what_peft_made_has_the_same_effect_here(
    base: Path, sites: tuple[Site, ...], tmp_path: Path, options: dict[str, Any]
) -> None:
    _peft_folder(base, tmp_path / "a", **options)
    # PEFT sorts patterns when it saves, and so may itself read another first match than it trained with.
    expected = _logits(PeftModel.from_pretrained(_model(base), tmp_path / "a"))
    adapter = read_peft(tmp_path / "a", sites)
    assert adapter.page.tensor.dtype == torch.float32
    assert [site for site in sites if site in adapter.page.sites] == list(adapter.page.sites)
    merged = _logits(_merged(base, adapter.page))
    torch.testing.assert_close(merged, expected, rtol=0, atol=2e-5)
    assert (merged - _logits(_model(base))).abs().max() > 0.05
    spoilt = replace(adapter.page, scales=tuple(scale * 1.01 for scale in adapter.page.scales))
    assert (_logits(_merged(base, spoilt)) - expected).abs().max() > 1e-4
    write_peft(adapter.page, tmp_path / "b", base_model_name="tiny", base_digest=BASE_DIGEST, sites=sites)
    again = read_peft(tmp_path / "b", sites).page
    assert torch.equal(again.tensor, adapter.page.tensor)
    assert (again.sites, again.ranks, again.scales) == (adapter.page.sites, adapter.page.ranks, adapter.page.scales)


def test_facts_are_those_of_the_configuration(base: Path, sites: tuple[Site, ...], tmp_path: Path) -> None:
    _peft_folder(base, tmp_path / "a", r=6, lora_alpha=5, use_rslora=True, rank_pattern={"q_proj": 2})
    adapter = read_peft(tmp_path / "a", sites)
    config = adapter.config
    assert (config.rank, config.alpha, config.alpha_rule, config.base_model_name) == (6, 5, "sqrt", str(base))
    assert config.raw["peft_version"]
    names = [site.name for site in adapter.page.sites]
    assert {name: rank for name, rank in zip(names, adapter.page.ranks, strict=True) if rank != 6} == {
        "model.layers.0.self_attn.q_proj": 2,
        "model.layers.1.self_attn.q_proj": 2,
    }
    assert set(adapter.page.scales) == {5 / math.sqrt(6), 5 / math.sqrt(2)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_exactly(folder: Path, sites: tuple[Site, ...], dtype: torch.dtype) -> None:
    halves: dict[str, Tensor] = {}

    def narrow(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()})
        halves.update(tensors)

    _rewrite(folder, narrow)
    a, bt = read_peft(folder, sites).page.factors()["model.layers.0.self_attn.q_proj"]
    assert torch.equal(a, halves[Q0 + ".lora_A.weight"].float())
    assert torch.equal(bt.T, halves[Q0 + ".lora_B.weight"].float())


EXPORTS = {
    "ratio": ([16], [2.0]),
    "constant": ([3], [0.3]),
    "root": ([12], [32 / math.sqrt(12)]),
    "mixed": ([1, 2, 3, 5, 8], [0.1, 1 / 3, 2.0, 1e-3, 7.7]),
    "negative": ([4], [-1.5]),
}


@pytest.mark.parametrize(("ranks", "scales"), EXPORTS.values(), ids=EXPORTS.keys())
@pytest.mark.parametrize("short", [False, True])
def test_an_export_has_the_same_effect_in_peft(
    base: Path, sites: tuple[Site, ...], tmp_path: Path, ranks: list[int], scales: list[float], short: bool
) -> None:
    count = len(sites)
    page = _page(sites, (ranks * count)[:count], (scales * count)[:count])
    write_peft(page, tmp_path / "out", base_model_name="tiny", base_digest=BASE_DIGEST, sites=sites if short else None)
    model = PeftModel.from_pretrained(_model(base), tmp_path / "out")
    torch.testing.assert_close(_logits(model), _logits(_merged(base, page)), rtol=0, atol=2e-5)
    assert (_logits(model) - _logits(_model(base))).abs().max() > 1e-3
    for site, rank, scale in zip(page.sites, page.ranks, page.scales, strict=True):
        layer = model.get_submodule(PREFIX + site.name)
        assert layer.r["default"] == rank
        assert layer.scaling["default"] == pytest.approx(scale, rel=2**-52, abs=0)
        a, bt = page.factors()[site.name]
        assert torch.equal(layer.lora_A["default"].weight, a) and torch.equal(layer.lora_B["default"].weight, bt.T)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_an_export_of_some_layers_names_just_these(base: Path, sites: tuple[Site, ...], tmp_path: Path) -> None:
    attention = tuple(site for site in sites if "self_attn" in site.name)
    some = (*attention[:3], sites[-1])
    for name, chosen, targets in (
        ("attention", attention, ["k_proj", "o_proj", "q_proj", "v_proj"]),
        ("some", some, [site.name for site in some]),
    ):
        page = _page(chosen, [2] * len(chosen), [1.0] * len(chosen))
        write_peft(page, tmp_path / name, base_model_name="tiny", base_digest=BASE_DIGEST, sites=sites)
        assert json.loads((tmp_path / name / "adapter_config.json").read_text())["target_modules"] == targets
        model = PeftModel.from_pretrained(_model(base), tmp_path / name)
        torch.testing.assert_close(_logits(model), _logits(_merged(base, page)), rtol=0, atol=2e-5)
        assert read_peft(tmp_path / name, sites).page.sites == chosen


def test_a_half_precision_page_is_exported_as_it_is(sites: tuple[Site, ...], tmp_path: Path) -> None:
    page = _page(sites, [2] * len(sites), [1.0] * len(sites))
    half = page.like(page.tensor.bfloat16())
    write_peft(half, tmp_path / "out", base_model_name="tiny", base_digest=BASE_DIGEST)
    assert {t.dtype for t in load_file(tmp_path / "out" / "adapter_model.safetensors").values()} == {torch.bfloat16}
    assert torch.equal(read_peft(tmp_path / "out", sites).page.tensor, half.tensor.float())


def test_a_place_that_is_taken_is_left_alone(sites: tuple[Site, ...], tmp_path: Path) -> None:
    page = _page(sites, [2] * len(sites), [1.0] * len(sites))
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    for place in (taken, taken / "notes.txt"):
        with pytest.raises(AdapterError, match="Choose another place"):
            write_peft(page, place, base_model_name="tiny", base_digest=BASE_DIGEST)
    with pytest.raises(AdapterError, match="cannot be put at"):
        write_peft(page, taken / "notes.txt" / "below", base_model_name="tiny", base_digest=BASE_DIGEST)
    assert [path.name for path in taken.iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    write_peft(page, tmp_path / "empty", base_model_name="tiny", base_digest=BASE_DIGEST)
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_an_export_that_reads_back_otherwise_is_not_kept(
    sites: tuple[Site, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = _page(sites, [2] * len(sites), [1.0] * len(sites))

    def spoil(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        tensors[f"{Q0}.lora_A.weight"] = tensors[f"{Q0}.lora_A.weight"] * (1 + 2**-23)
        save_file(tensors, path, metadata=metadata)

    monkeypatch.setattr("mintbook.store.peft_format.save_file", spoil)
    with pytest.raises(FormatError, match="read back"):
        write_peft(page, tmp_path / "out", base_model_name="tiny", base_digest=BASE_DIGEST)
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_none_are_not_exported(sites: tuple[Site, ...], tmp_path: Path) -> None:
    page = _page(sites, [2] * len(sites), [1.0] * len(sites))
    page.tensor[0, 0] = math.nan
    with pytest.raises(AdapterError, match="1 numbers that are NaN"):
        write_peft(page, tmp_path / "out", base_model_name="tiny", base_digest=BASE_DIGEST)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "error", "why"),
    [
        ({"use_dora": True}, FormatError, "DoRA"),
        (
            {"target_modules": ["k_proj"]},
            TargetError,
            r"factors for 'model\.layers\.0\.self_attn\.q_proj'.*do not select",
        ),
        ({"r": 8}, ShapeError, r"is \[4, 64\].*rank 8.*ask for \[8, 64\]"),
        ({"rank_pattern": {"q_proj": 3}}, ShapeError, r"q_proj\.lora_A.*\[4, 64\].*ask for \[3, 64\]"),
    ],
    ids=["more than LoRA", "other targets", "another rank", "another rank of one"],
)
def test_a_configuration_that_the_weights_deny_is_refused(
    folder: Path, sites: tuple[Site, ...], changes: dict[str, Any], error: type[Exception], why: str
) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(error, match=why):
        read_peft(folder, sites)


def test_factors_that_the_configuration_selects_must_be_there(folder: Path, sites: tuple[Site, ...]) -> None:
    _rewrite(folder, lambda tensors: [tensors.pop(f"{Q0}.lora_{side}.weight") for side in "AB"])
    with pytest.raises(TargetError, match=r"has no factors for 'model\.layers\.0\.self_attn\.q_proj'"):
        read_peft(folder, sites)


def _put(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: tensor})


def _renamed(old: str, new: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if old in name]:
            tensors[name.replace(old, new)] = tensors.pop(name)

    return change


REFUSED_TENSORS = {
    "only A": (
        lambda t: t.pop(f"{Q0}.lora_B.weight"),
        FormatError,
        "only the lora_A of 'model.layers.0.self_attn.q_proj'",
    ),
    "only B": (lambda t: t.pop(f"{Q0}.lora_A.weight"), FormatError, "only the lora_B"),
    "foreign module": (
        _renamed("q_proj", "qq_proj"),
        TargetError,
        "'model.layers.0.self_attn.qq_proj'.*Nearest: .*q_proj",
    ),
    "third layer": (_renamed("layers.1", "layers.2"), TargetError, r"layers\.2.*another base"),
    "unembedding": (_renamed("model.layers.0.self_attn.q_proj", "lm_head"), TargetError, "'lm_head'"),
    "embedding": (_put(f"{PREFIX}model.embed_tokens.lora_embedding_A", torch.ones(1)), FormatError, "lora_embedding_A"),
    "extra": (_put("notes", torch.ones(1)), FormatError, "'notes'"),
    "no prefix": (_renamed(PREFIX, ""), FormatError, "plain LoRA has base_model.model."),
    "magnitude": (_put(f"{Q0}.lora_magnitude_vector", torch.ones(64)), FormatError, "magnitude"),
    "adapter's name": (_renamed(".weight", ".default.weight"), FormatError, "default"),
    "nothing": (lambda t: t.clear(), FormatError, "holds no tensors"),
    "wide A": (_put(f"{Q0}.lora_A.weight", torch.ones(4, 65)), ShapeError, r"\[4, 65\].*64 → 64.*\[4, 64\]"),
    "wide B": (_put(f"{Q0}.lora_B.weight", torch.ones(4, 64)), ShapeError, r"\[4, 64\].*\[64, 4\]"),
    "flat": (_put(f"{Q0}.lora_A.weight", torch.ones(256)), ShapeError, r"is \[256\]"),
    "another rank": (_put(f"{Q0}.lora_A.weight", torch.ones(5, 64)), ShapeError, r"is \[5, 64\]"),
    "NaN": (_put(f"{Q0}.lora_A.weight", torch.full((4, 64), math.nan)), FormatError, "256 numbers that are NaN"),
    "infinite": (_put(f"{Q0}.lora_B.weight", torch.full((64, 4), math.inf)), FormatError, "256 numbers that are NaN"),
    "integers": (_put(f"{Q0}.lora_A.weight", torch.ones(4, 64, dtype=torch.int8)), FormatError, "is I8; F32"),
    "doubles": (_put(f"{Q0}.lora_A.weight", torch.ones(4, 64).double()), FormatError, "is F64"),
}


@pytest.mark.parametrize(("change", "error", "why"), REFUSED_TENSORS.values(), ids=REFUSED_TENSORS.keys())
def test_weights_that_do_not_fit_are_refused(
    folder: Path,
    sites: tuple[Site, ...],
    change: Callable[[dict[str, Tensor]], Any],
    error: type[Exception],
    why: str,
) -> None:
    _rewrite(folder, change)
    with pytest.raises(error, match=why):
        read_peft(folder, sites)


def test_every_truncation_is_refused(folder: Path, sites: tuple[Site, ...]) -> None:
    path = folder / "adapter_model.safetensors"
    whole = path.read_bytes()
    for length in [*range(16), *range(16, len(whole), 997), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError, match="safetensors"):
            read_peft(folder, sites)
    path.write_bytes(whole + b"more")
    with pytest.raises(FormatError, match="safetensors"):
        read_peft(folder, sites)


def test_a_pickle_is_refused_unopened(folder: Path, sites: tuple[Site, ...]) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"cposix\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(FormatError, match=r"pickle.*can run code.*save_pretrained"):
        read_peft(folder, sites)


def test_missing_files_are_named(folder: Path, sites: tuple[Site, ...]) -> None:
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(FormatError, match=r"no readable adapter_model\.safetensors"):
        read_peft(folder, sites)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(FormatError, match=r"no readable adapter_config\.json"):
        read_peft(folder, sites)
    with pytest.raises(FormatError, match="not a folder"):
        read_peft(folder / "nowhere", sites)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_links_out_of_the_folder_are_refused(folder: Path, sites: tuple[Site, ...], tmp_path: Path, name: str) -> None:
    (folder / name).rename(tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    with pytest.raises(FormatError, match="leads out of its folder"):
        read_peft(folder, sites)


def test_a_header_bomb_is_refused(folder: Path, sites: tuple[Site, ...]) -> None:
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(FormatError, match="announces a header of 9223372036854775808 bytes"):
        read_peft(folder, sites)
