"""What the ops demand of their arguments, said before anything is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from mintbook_kernels.factors import Factors
from mintbook_kernels.segments import Segments

TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_operands(y: Tensor, x: Tensor, factors: Factors, segments: Segments, *, y_name: str = "y") -> None:
    """Raise `ValueError` unless ``y [T, O]`` and ``x [T, H]`` fit the factors and the batch."""
    if segments.bank_slots != factors.slots:
        raise ValueError(
            f"The segments were made for a bank of {segments.bank_slots} slots; the factors have {factors.slots} slots."
        )
    tokens, wide_in, wide_out = segments.tokens, factors.a.shape[1], factors.b.shape[1]
    for name, tensor, width in (("x", x, wide_in), (y_name, y, wide_out)):
        if tuple(tensor.shape) != (tokens, width):
            raise ValueError(
                f"{name} is {list(tensor.shape)}; {tokens} rows of the segments and factors {wide_in} → {wide_out} ask "
                f"for {[tokens, width]}."
            )
        if tensor.dtype != factors.a.dtype:
            raise ValueError(
                f"{name} is {tensor.dtype} and the factors are {factors.a.dtype}; convert one of them beforehand."
            )
        if tensor.device != factors.a.device:
            raise ValueError(f"{name} is on {tensor.device} and the factors are on {factors.a.device}.")
        if tensor.stride(1) != 1 and width > 1:
            raise ValueError(
                f"The numbers of one row of {name} must lie side by side; its strides are {tensor.stride()}."
            )


def check_grads(grads: Factors, factors: Factors) -> None:
    """Raise `ValueError` unless ``grads`` can take the gradients of ``factors``: same widths and slots, fp32."""
    found, wanted = (grads.a.shape[1], grads.b.shape[1]), (factors.a.shape[1], factors.b.shape[1])
    if found != wanted or grads.slots != factors.slots:
        raise ValueError(
            f"grads describe {found[0]} → {found[1]} and {grads.slots} slots; the factors are {wanted[0]} → "
            f"{wanted[1]} with {factors.slots} slots."
        )
    precision = torch.float64 if factors.a.dtype == torch.float64 else torch.float32
    if grads.a.dtype != precision:
        raise ValueError(
            f"grads are {grads.a.dtype}; gradients of {factors.a.dtype} factors are summed in {precision}."
        )
    if grads.a.device != factors.a.device:
        raise ValueError(f"grads are on {grads.a.device} and the factors are on {factors.a.device}.")


def check_triton_dtype(x: Tensor) -> None:
    """Raise `ValueError` for a precision that the Triton kernels do not compute in."""
    if x.dtype not in TRITON_DTYPES:
        raise ValueError(
            f"The Triton kernels take {', '.join(map(str, TRITON_DTYPES))}; x is {x.dtype}. Ask for 'cpu'."
        )
