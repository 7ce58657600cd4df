from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from mintbook.errors import FormatError, TargetError
from mintbook.store.peft_config import PeftConfig, read_peft_config

MODULES = [
    f"model.layers.{layer}.{part}"
    for layer in (0, 1, 2, 11, 12)
    for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj", "mlp.experts.1.up_proj")
]


def _read(folder: Path, **fields: Any) -> PeftConfig:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]} | fields))
    return read_peft_config(path)


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["q_proj", "up_proj"]},
        {"target_modules": ["layers.1.self_attn.q_proj", "model.layers.2.mlp.up_proj", "proj"]},
        {"target_modules": r".*\.(0|11)\..*(q|down)_proj"},
        {"target_modules": r"model\.layers\.1"},
        {"target_modules": "(?i).*Q_PROJ"},
        {"target_modules": ["up_proj"], "layers_to_transform": [1, 12]},
        {"target_modules": ["up_proj"], "layers_to_transform": 0},
        {"target_modules": ["up_proj"], "layers_to_transform": []},
        {"target_modules": ["up_proj"], "layers_to_transform": [1], "layers_pattern": "experts"},
        {"target_modules": ["up_proj"], "layers_to_transform": [1], "layers_pattern": ["h", "layers"]},
        {"target_modules": ["up_proj"], "layers_to_transform": [1], "layers_pattern": ["h"]},
        {"target_modules": ["up_proj", "model.layers.2.mlp.up_proj"], "layers_to_transform": [1]},
        {"target_modules": ["up_proj", "q_proj"], "exclude_modules": ["layers.1.mlp.up_proj"]},
        {"target_modules": ["up_proj", "q_proj"], "exclude_modules": r".*layers\.1\..*"},
    ],
    ids=str,
)
def test_modules_are_selected_as_peft_selects_them(tmp_path: Path, fields: dict[str, Any]) -> None:
    ours, theirs = _read(tmp_path, **fields), LoraConfig(**fields)
    selected = [module for module in MODULES if ours.selects(module)]
    assert selected == [module for module in MODULES if bool(check_target_module_exists(theirs, module)) is True]
    assert selected or fields["target_modules"] == r"model\.layers\.1" or fields["layers_pattern"] == ["h"]


def test_all_linear_selects_every_module(tmp_path: Path) -> None:
    config = _read(tmp_path, target_modules="all-linear", exclude_modules=["down_proj"])
    assert [m for m in MODULES if not config.selects(m)] == [m for m in MODULES if m.endswith("down_proj")]


@pytest.mark.parametrize(
    "keys",
    [
        ["q_proj", "layers.1.self_attn.q_proj"],
        [r"layers\.1\..*", "up_proj", "proj"],
        ["^model.layers.1.mlp.up_proj", "mlp.up_proj"],
        ["model.layers.1", "_proj", ".*_proj"],
        ["layers.(0|2).*"],
    ],
    ids=str,
)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_ranks_and_scales_follow_the_first_pattern_as_in_peft(
    tmp_path: Path, keys: list[str], use_rslora: bool
) -> None:
    ranks, alphas = ({key: start + i for i, key in enumerate(keys)} for start in (5, 50))
    config = _read(tmp_path, rank_pattern=ranks, alpha_pattern=alphas, use_rslora=use_rslora, lora_alpha=7)
    for module in MODULES:
        key = get_pattern_key(keys, module)
        rank, alpha = ranks.get(key, 4), alphas.get(key, 7)
        assert config.rank_of(module) == rank
        assert config.scale_of(module) == (alpha / math.sqrt(rank) if use_rslora else alpha / rank)


def test_what_is_left_out_has_the_values_of_peft(tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_text('{"peft_type": "LORA", "target_modules": "all-linear", "rank_pattern": null}')
    config, default = read_peft_config(path), LoraConfig()
    assert (config.rank, config.alpha, config.alpha_rule) == (default.r, default.lora_alpha, "ratio")
    assert config.base_model_name is None


def test_every_field_of_a_plain_peft_configuration_is_taken(tmp_path: Path) -> None:
    LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", lora_dropout=0.1).save_pretrained(tmp_path)
    assert read_peft_config(tmp_path / "adapter_config.json").selects("model.layers.0.self_attn.q_proj")


REFUSED = [
    ({"peft_type": "IA3"}, FormatError, "'IA3'.*only 'LORA'"),
    ({"peft_type": None}, FormatError, "only 'LORA'"),
    ({"task_type": "SEQ_CLS"}, FormatError, "'SEQ_CLS'.*'CAUSAL_LM'"),
    ({"bias": "lora_only"}, FormatError, "bias 'lora_only'"),
    ({"use_dora": True}, FormatError, "'use_dora'.*DoRA rescales"),
    ({"modules_to_save": ["lm_head"]}, FormatError, "'modules_to_save'.*lm_head.*whole modules"),
    ({"lora_bias": True}, FormatError, "'lora_bias'"),
    ({"trainable_token_indices": [1]}, FormatError, "'trainable_token_indices'.*embedding"),
    ({"target_parameters": ["experts.down_proj"]}, FormatError, "'target_parameters'"),
    ({"layer_replication": [[0, 2]]}, FormatError, "'layer_replication'"),
    ({"fan_in_fan_out": True}, FormatError, "'fan_in_fan_out'"),
    ({"alora_invocation_tokens": [1, 2]}, FormatError, "'alora_invocation_tokens'"),
    ({"use_something_new": {"depth": 3}}, FormatError, "'use_something_new'.*does not know"),
    *(
        ({"init_lora_weights": start}, FormatError, f"init_lora_weights '{start}'.*base's own weights")
        for start in ("pissa", "pissa_niter_16", "olora", "OLoRA", "loftq", "corda", "lora_ga", "mica")
    ),
    ({"r": 257}, FormatError, "r 257; ranks from 1 to 256"),
    ({"r": 0}, FormatError, "r 0; ranks"),
    ({"r": 4.0}, FormatError, "r 4.0; it must be an integer"),
    ({"r": True}, FormatError, "r True"),
    ({"rank_pattern": {"q_proj": 10**30}}, FormatError, "rank_pattern 'q_proj'.*ranks from"),
    ({"rank_pattern": ["q_proj"]}, FormatError, "rank_pattern"),
    ({"lora_alpha": math.nan}, FormatError, "lora_alpha nan"),
    ({"lora_alpha": 10**400}, FormatError, "lora_alpha 1000"),
    ({"lora_alpha": "16"}, FormatError, "lora_alpha '16'"),
    ({"alpha_pattern": {"q_proj": math.inf}}, FormatError, "alpha_pattern 'q_proj' inf"),
    ({"alpha_pattern": {"q_proj(": 1}}, FormatError, r"q_proj\(.*missing \)"),
    ({"target_modules": None}, TargetError, "target_modules None"),
    ({"target_modules": [1]}, TargetError, r"target_modules \[1\]"),
    ({"layers_to_transform": {"0": 1}}, FormatError, "layers_to_transform"),
    ({"exclude_modules": 3}, FormatError, "exclude_modules"),
]


@pytest.mark.parametrize(("fields", "error", "why"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_cannot_be_honoured_is_refused(
    tmp_path: Path, fields: dict[str, Any], error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        _read(tmp_path, **fields)


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"])
def test_an_expression_that_takes_for_ever_is_refused(tmp_path: Path, field: str) -> None:
    endless = r"(\w|\.|[a-z]|.)+[^a-z0-9._]"
    config = _read(tmp_path, **{field: {endless: 1} if field.endswith("pattern") else endless})
    with pytest.raises(FormatError, match=r"takes more than 0\.2 s"):
        (config.scale_of if field.endswith("pattern") else config.selects)("model.layers.0.self_attn.q_proj")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe\xfa", b"[" * 500_000, b'{"r":' + b"9" * 5000 + b"}"])
def test_broken_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"adapter_config\.json"):
        read_peft_config(path)


def test_endless_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="larger than"):
        _read(tmp_path, revision="x" * (1 << 20))
    with pytest.raises(FormatError, match="4096 entries"):
        _read(tmp_path, rank_pattern={f"module{i}": 1 for i in range(5000)})
