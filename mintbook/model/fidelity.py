"""Whether the packed forward computes what the model's own padded forward computes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mintbook.errors import BaseUnsupported
from mintbook.model import attention
from mintbook.model.batch import PackedBatch, Piece
from mintbook.model.kv_cache import KVCache

LENGTHS = (3, 17, 41)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}
"""Largest |packed − padded| over the largest |padded| logit. Matrix products round differently in other shapes."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """The largest difference of packed from padded logits, relative to the largest logit, and what is allowed."""

    prefill: float
    decode: float
    tolerance: float


def check_fidelity(model: nn.Module, vocabulary: int) -> Fidelity:
    """Compare packed prefill and packed decode (KV cache) with the padded forward on sequences of three lengths.

    Leaves the model on packed attention. Raises `BaseUnsupported` with the reason when they differ by more than the
    tolerance of the model's precision (fp32 1e-4, fp16 1e-2, bf16 6e-2 of the largest logit), or when the model uses
    something that packed attention does not compute.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(0, vocabulary, (n,), generator=generator).tolist() for n in LENGTHS]
    padded = _padded(model, sequences, device)
    model.set_attn_implementation(attention.NAME)  # type: ignore[operator]
    prefill, decode = _packed(model, sequences, device)
    size = _largest(padded)
    precision = next(model.parameters()).dtype
    fidelity = Fidelity(
        prefill=_largest([p - q for p, q in zip(padded, prefill, strict=True)]) / size,
        decode=_largest([p[-1] - q for p, q in zip(padded, decode, strict=True)]) / size,
        tolerance=TOLERANCE[precision],
    )
    if not (fidelity.prefill <= fidelity.tolerance and fidelity.decode <= fidelity.tolerance):
        raise BaseUnsupported(
            f"The packed forward of this {type(model).__name__} differs from its ordinary one by "
            f"{fidelity.prefill:.2g} of the largest logit ({fidelity.decode:.2g} with a KV cache); at most "
            f"{fidelity.tolerance:.0e} is allowed in {str(precision).removeprefix('torch.')}. "
            "Its attention or positions are not plain causal."
        )
    return fidelity


def _largest(logits: list[Tensor]) -> float:
    # Not Python's max, which drops a NaN that does not come first.
    return float(torch.stack([part.abs().max() for part in logits]).max())


def _padded(model: nn.Module, sequences: list[list[int]], device: torch.device) -> list[Tensor]:
    width = max(LENGTHS)
    tokens = torch.tensor([s + [0] * (width - len(s)) for s in sequences], device=device)
    mask = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in sequences], device=device)
    with torch.inference_mode():
        logits: Tensor = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits.float()
    return [logits[i, : len(s)] for i, s in enumerate(sequences)]


def _packed(model: nn.Module, sequences: list[list[int]], device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    cache = KVCache(sum(len(s) + 16 for s in sequences), device)
    tables = [cache.allocate(len(s)) for s in sequences]
    whole = PackedBatch.of([Piece(s) for s in sequences], device=device)
    first = PackedBatch.of(
        [Piece(s[:-1], table=t) for s, t in zip(sequences, tables, strict=True)], device=device, cache=cache
    )
    last = PackedBatch.of(
        [Piece(s[-1:], start=len(s) - 1, table=t) for s, t in zip(sequences, tables, strict=True)],
        device=device,
        cache=cache,
    )
    with torch.inference_mode():
        logits, _, decoded = (
            model(input_ids=b.tokens[None], position_ids=b.positions[None], use_cache=False, packed=b).logits[0].float()
            for b in (whole, first, last)
        )
    return [logits[a:b] for a, b in zip(whole.bounds, whole.bounds[1:], strict=False)], list(decoded)
