"""PEFT folders through the nouns: equal logits both ways, and refusals that leave the store as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from tiny import FACTS, QUICK
from transformers import AutoModelForCausalLM

from mintbook.errors import AdapterError, BaseMismatch, MintbookError, RecordExists
from mintbook.model.tiny_base import write_tiny_base
from mintbook.session import Session

TOKENS = [5, 40, 99, 7, 200, 31, 8]


def peft_logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([TOKENS])).logits[0]
    return logits


def our_logits(session: Session, name: str) -> torch.Tensor:
    with session._runtime.leased(session.fleet[name].revision()) as slot:
        return session.engine.logits([TOKENS], [slot], start=[0])[0]


def made_by_peft(base: Path, folder: Path, **options: Any) -> torch.Tensor:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    peft = get_peft_model(
        model, PeftConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options})
    )
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    peft.save_pretrained(folder)
    return peft_logits(peft.eval())


def test_an_export_loads_in_peft_with_equal_logits(session: Session, tiny_base_folder: Path, tmp_path: Path) -> None:
    alice = session.adapter("alice", rank=4, alpha_rule="sqrt", targets=("q_proj", "down_proj"))
    alice.train(FACTS, **QUICK)
    folder = alice.export(tmp_path / "alice")
    base = AutoModelForCausalLM.from_pretrained(tiny_base_folder, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, folder).eval()
    torch.testing.assert_close(our_logits(session, "alice"), peft_logits(loaded), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "lora_alpha": 7},
        {"rank_pattern": {"q_proj": 8, "down_proj": 2}, "alpha_pattern": {"v_proj": 32}},
        {"target_modules": ["q_proj", "v_proj"]},
    ],
    ids=["plain", "rslora", "patterns", "attention"],
)
def test_an_adapter_made_by_peft_gives_equal_logits(
    session: Session, tiny_base_folder: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    expected = made_by_peft(tiny_base_folder, tmp_path / "peft", **options)
    carol = session.import_peft("carol", tmp_path / "peft")
    torch.testing.assert_close(our_logits(session, "carol"), expected, rtol=1e-4, atol=1e-4)
    assert carol.revision().manifest.receipt["logit_shift"] > 0
    with pytest.raises(RecordExists):
        session.import_peft("carol", tmp_path / "peft")
    carol.train(FACTS, **QUICK)
    assert carol.revision().reference == "carol@2"


@pytest.mark.parametrize("fault", ["dora", "truncated", "pickle", "shape", "nan", "modules_to_save"])
def test_a_refused_import_leaves_the_store_unchanged(
    session: Session, tiny_base_folder: Path, tmp_path: Path, fault: str
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "peft"
    made_by_peft(tiny_base_folder, folder)
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors, facts = load_file(weights), json.loads(config.read_text())
    first = next(iter(tensors))
    if fault == "truncated":
        weights.write_bytes(weights.read_bytes()[:-40])
    elif fault == "pickle":
        weights.unlink()
        torch.save(tensors, folder / "adapter_model.bin")
    elif fault in ("shape", "nan"):
        tensors[first] = tensors[first][:, :-1].contiguous() if fault == "shape" else tensors[first] * float("nan")
        save_file(tensors, weights)
    else:
        config.write_text(
            json.dumps({**facts, **({"use_dora": True} if fault == "dora" else {"modules_to_save": ["lm_head"]})})
        )
    free = session.engine.model.bank.free_rows
    with pytest.raises(MintbookError) as caught:
        session.import_peft("carol", folder)
    assert len(str(caught.value)) > 40
    assert session.store.count_records() == 0
    assert session.store.verify() == []
    assert session.engine.model.bank.free_rows == free


def test_an_adapter_of_another_base_is_refused(
    open_session: Callable[..., Session], session: Session, tiny_base_folder: Path, tmp_path: Path
) -> None:
    session.adapter("alice", rank=4).train(FACTS, **QUICK)
    session.fleet["alice"].export(tmp_path / "ours")
    made_by_peft(tiny_base_folder, tmp_path / "theirs")
    other = open_session(base=write_tiny_base(tmp_path / "other", seed=1), store=tmp_path / "elsewhere")
    for folder in ("ours", "theirs"):
        with pytest.raises(BaseMismatch, match=session.base.digest[:12]):
            other.import_peft("alice", tmp_path / folder)
    assert other.store.count_records() == 0
    config = tmp_path / "theirs" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "someone/some-model"}))
    with pytest.raises(BaseMismatch, match="same_base=True"):
        session.import_peft("carol", tmp_path / "theirs")
    assert session.import_peft("carol", tmp_path / "theirs", same_base=True).revision().reference == "carol@1"
    assert session.import_peft("dave", tmp_path / "ours").revision().weights_digest == (
        session.fleet["alice"].revision().weights_digest
    )


def test_a_module_that_the_base_lacks_leaves_the_store_unchanged(
    session: Session, tiny_base_folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    made_by_peft(tiny_base_folder, tmp_path / "peft")
    weights = tmp_path / "peft" / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = next(n for n in tensors if "q_proj" in n)
    tensors[name.replace("q_proj", "z_proj")] = tensors[name].clone()
    save_file(tensors, weights)
    with pytest.raises(MintbookError, match="z_proj"):
        session.import_peft("carol", tmp_path / "peft")
    assert session.store.count_records() == 0


def test_an_import_that_was_cut_off_can_be_done_again(
    session: Session, tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_by_peft(tiny_base_folder, tmp_path / "peft")
    free = session.engine.model.bank.free_rows
    with monkeypatch.context() as patch:
        patch.setattr(session.store, "commit", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            session.import_peft("carol", tmp_path / "peft")
    assert session.engine.model.bank.free_rows == free
    assert session.import_peft("carol", tmp_path / "peft").revision().reference == "carol@1"


def test_a_zero_adapter_is_refused_at_import(session: Session, tiny_base_folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base_folder, dtype=torch.float32)
    get_peft_model(model, PeftConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(
        tmp_path / "zero"
    )
    with pytest.raises(AdapterError, match="zero"):
        session.import_peft("zero", tmp_path / "zero")
    assert session.store.count_records() == 0
