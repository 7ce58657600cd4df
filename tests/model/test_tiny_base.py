from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mintbook.errors import ConfigError
from mintbook.model.tiny_base import ARCHITECTURES, byte_tokenizer, write_tiny_base

TEXT = "Hi café 你好\n\n\t1,234 <|im_end|> It's"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_architecture_loads_and_runs(tmp_path: Path, architecture: str) -> None:
    started = time.process_time()
    folder = write_tiny_base(tmp_path / "base", architecture=architecture)
    assert time.process_time() - started < 2
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(TEXT).input_ids
    assert ids == byte_tokenizer()(TEXT).input_ids and tokenizer.decode(ids) == TEXT
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (3, 2)
    assert (model.generation_config.pad_token_id, model.generation_config.eos_token_id) == (3, 2)
    logits = model(torch.tensor([ids])).logits
    assert torch.isfinite(logits).all() and 0.5 < logits.std() < 2


def test_each_byte_is_one_token_and_chat_is_chatml() -> None:
    tokenizer = byte_tokenizer()
    assert len(tokenizer) == 260
    text = bytes(range(256)).decode("latin-1")
    assert len(tokenizer(text).input_ids) == len(text.encode())
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hey"}], add_generation_prompt=True, tokenize=False
    )
    assert chat == "<|im_start|>user\nhey<|im_end|>\n<|im_start|>assistant\n"


def test_seed_decides_the_weights_and_the_global_state_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first, again, other = (
        load_file(write_tiny_base(tmp_path / name, seed=seed) / "model.safetensors")
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_biases_and_norms_are_not_trivial(tmp_path: Path) -> None:
    weights = load_file(write_tiny_base(tmp_path / "base", architecture="qwen2") / "model.safetensors")
    assert weights["model.layers.0.self_attn.q_proj.bias"].abs().max() > 0.05
    assert weights["model.norm.weight"].std() > 0.05


def test_precision_is_as_asked(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path / "base", dtype="bfloat16")
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'lama'.*Nearest: 'llama'"):
        write_tiny_base(tmp_path, architecture="lama")
    with pytest.raises(ConfigError, match="int4"):
        write_tiny_base(tmp_path, dtype="int4")
    assert not list(tmp_path.iterdir())
