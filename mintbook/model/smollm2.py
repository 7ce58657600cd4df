"""SmolLM2 from a GGUF file to an ordinary Hugging Face folder, with the known faults of that journey mended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from mintbook.errors import FormatError
from mintbook.model.gguf import GgufFile

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SPECIAL_TOKEN = 3
_PAD = "<|endoftext|>"


def write_smollm2(gguf: GgufFile, folder: Path, *, name: str, dtype: str, progress: Callable[[float], None]) -> None:
    """Write config, weights, tokenizer, chat template and generation settings of a SmolLM2 GGUF into ``folder``.

    ``progress`` is told the share of the tensors done. Another architecture or tokenizer raises `FormatError`.
    """
    found = (gguf.metadata.get("general.architecture"), gguf.metadata.get("tokenizer.ggml.pre"))
    if found != ("llama", "smollm"):
        raise FormatError(f"{gguf.path} has architecture and tokenizer {found}; only ('llama', 'smollm') is converted.")
    weights: dict[str, Tensor] = {}
    for done, tensor in enumerate(gguf.tensors):
        weights[_hf_name(tensor)] = torch.from_numpy(_hf_order(gguf, tensor)).to(getattr(torch, dtype)).contiguous()
        progress((done + 1) / len(gguf.tensors))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = _tokenizer(gguf.metadata)
    tokenizer.save_pretrained(folder)
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    _config(gguf.metadata, name, dtype, ends).save_pretrained(folder)
    GenerationConfig(**ends).save_pretrained(folder)  # type: ignore[no-untyped-call]


def _hf_name(name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    block, _, rest = name.removeprefix("blk.").partition(".")
    part, _, kind = rest.partition(".")
    if not block.isdigit() or part not in _LAYER or kind != "weight":
        raise FormatError(
            f"The GGUF file holds the tensor {name!r}, which has no place in a Llama with tied embeddings."
        )
    return f"model.layers.{block}.{_LAYER[part]}.weight"


def _hf_order(gguf: GgufFile, name: str) -> NDArray[np.float32]:
    """Return the tensor; rows of q and k are put as transformers rotates them, in halves, not in llama.cpp's pairs."""
    weight = gguf.tensor(name)
    heads = {"attn_q": "head_count", "attn_k": "head_count_kv"}.get(name.split(".")[-2])
    if heads is None:
        return weight.copy()
    pairs = weight.reshape(gguf.metadata[f"llama.attention.{heads}"], -1, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _config(meta: Mapping[str, Any], name: str, dtype: str, ends: Mapping[str, int | None]) -> LlamaConfig:
    options: dict[str, Any] = {
        # Its own key, because transformers puts the folder's path over `_name_or_path` when it loads.
        "model_name": name,
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "max_position_embeddings": meta["llama.context_length"],
        # GGUF keeps fp32: 9.999999747378752e-06 is the 1e-05 of the original.
        "rms_norm_eps": round(meta["llama.attention.layer_norm_rms_epsilon"], 12),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(meta["llama.rope.freq_base"])},
        "tie_word_embeddings": True,
        "dtype": dtype,
        **ends,
    }
    return LlamaConfig(**options)


def _tokenizer(meta: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    merges = [(left, right) for left, right in (merge.split(" ", 1) for merge in meta["tokenizer.ggml.merges"])]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    # Splitting digits first also keeps "\n\n" together before a number; transformers' own conversion drops this step.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = meta["tokenizer.ggml.token_type"]
    specials = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _SPECIAL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=tokens[meta["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[meta["tokenizer.ggml.eos_token_id"]],
        unk_token=tokens[meta["tokenizer.ggml.unknown_token_id"]],
        # The file says the end token; masking padding out of a loss would then mask every answer's end as well.
        pad_token=_PAD,
        chat_template=meta["tokenizer.chat_template"],
        model_max_length=meta["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
