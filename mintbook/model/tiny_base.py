"""Tiny random bases of several architectures: real Hugging Face folders that are made and run in a moment."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from mintbook.errors import ConfigError, nearest

_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_LAYERS = 2
_FULL_ATTENTION = ["full_attention"] * _LAYERS
_ARCHITECTURES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "llama-untied": (LlamaConfig, {"tie_word_embeddings": False}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {"head_dim": 16}),
    "mistral": (MistralConfig, {"sliding_window": 8}),
    "gemma2": (Gemma2Config, {"head_dim": 16, "query_pre_attn_scalar": 16, "layer_types": _FULL_ATTENTION}),
    "gpt_oss": (
        GptOssConfig,
        {
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "layer_types": _FULL_ATTENTION,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
}
ARCHITECTURES = tuple(_ARCHITECTURES)
"""Names for `write_tiny_base`. The last three each have what a plain causal attention lacks: a sliding window of
8 tokens, soft-capped logits, attention sinks."""


def write_tiny_base(folder: Path, *, architecture: str = "llama", seed: int = 0, dtype: str = "float32") -> Path:
    """Write a random 2-layer model of hidden size 64 with a 260-token byte tokenizer and ChatML, and return ``folder``.

    Equal arguments give equal weights, and the global random state is left alone. An unknown ``architecture`` or
    ``dtype`` raises `ConfigError`.
    """
    if architecture not in _ARCHITECTURES:
        raise ConfigError(
            f"No tiny base of architecture {architecture!r}.{nearest(architecture, ARCHITECTURES)} "
            f"There are: {', '.join(ARCHITECTURES)}."
        )
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ConfigError(f"dtype is {dtype!r}; it must be 'float32', 'bfloat16' or 'float16'.")
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(architecture, dtype)
    model = _random_model(config, seed).to(getattr(torch, dtype))
    save_file(dict(model.named_parameters()), folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer of the tiny bases: 4 special tokens and one token for each of the 256 bytes.

    >>> byte_tokenizer()("hé").input_ids
    [75, 131, 106]
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*_SPECIALS, *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_SPECIALS))
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        unk_token=_SPECIALS[0],
        bos_token=_SPECIALS[1],
        eos_token=_SPECIALS[2],
        pad_token=_SPECIALS[3],
        chat_template=_CHATML,
    )


def _config(architecture: str, dtype: str) -> PreTrainedConfig:
    kind, special = _ARCHITECTURES[architecture]
    options: dict[str, Any] = {
        "vocab_size": 260,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        # The usual 0.02 at this width gives logits so near each other that greedy tokens are decided by rounding.
        "initializer_range": 0.125,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
        "dtype": dtype,
    }
    return kind(**(options | special), architectures=[f"{kind.__name__.removesuffix('Config')}ForCausalLM"])


def _random_model(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(deepcopy(config), dtype=torch.float32)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for parameter in model.parameters():
                # Norms start at one and biases at zero: left so, a forward that forgot them would pass every test.
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model
