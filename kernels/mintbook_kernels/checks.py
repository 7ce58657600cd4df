"""What the ops demand of their arguments, said before anything is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from mintbook_kernels.factors import Factors
from mintbook_kernels.segments import Segments

TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_operands(y: Tensor, x: Tensor, factors: Factors, segments: Segments, *, y_name: str = "y") -> None:
    """Raise `ValueError` unless ``y [T, ΣO]`` and ``x [T, H]`` fit the factors and the batch."""
    if segments.bank_slots != factors.slots:
        raise ValueError(
            f"The segments were made for a bank of {segments.bank_slots} slots; the factors have {factors.slots} slots."
        )
    tokens, dtype, device = segments.tokens, factors.dtype, factors.device
    for name, tensor, width in (("x", x, factors.in_features), (y_name, y, factors.columns[-1])):
        if tuple(tensor.shape) != (tokens, width):
            raise ValueError(
                f"{name} is {list(tensor.shape)}; {tokens} rows of the segments and factors {_widths(factors)} ask "
                f"for {[tokens, width]}."
            )
        if tensor.dtype != dtype:
            raise ValueError(f"{name} is {tensor.dtype} and the factors are {dtype}; convert one of them beforehand.")
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device} and the factors are on {device}.")
        if tensor.stride(1) != 1 and width > 1:
            raise ValueError(
                f"The numbers of one row of {name} must lie side by side; its strides are {tensor.stride()}."
            )


def check_grads(grads: Factors, factors: Factors) -> None:
    """Raise `ValueError` unless ``grads`` can take the gradients of ``factors``: same widths and slots, fp32."""
    found, wanted = (grads.in_features, grads.out_features), (factors.in_features, factors.out_features)
    if found != wanted or grads.slots != factors.slots:
        raise ValueError(
            f"grads describe {_widths(grads)} and {grads.slots} slots; the factors are {_widths(factors)} with "
            f"{factors.slots} slots."
        )
    precision = torch.float64 if factors.dtype == torch.float64 else torch.float32
    if grads.dtype != precision:
        raise ValueError(f"grads are {grads.dtype}; gradients of {factors.dtype} factors are summed in {precision}.")
    if grads.device != factors.device:
        raise ValueError(f"grads are on {grads.device} and the factors are on {factors.device}.")


def _widths(factors: Factors) -> str:
    return f"{factors.in_features} → {' + '.join(map(str, factors.out_features))}"


def check_triton_dtype(x: Tensor) -> None:
    """Raise `ValueError` for a precision that the Triton kernels do not compute in."""
    if x.dtype not in TRITON_DTYPES:
        raise ValueError(
            f"The Triton kernels take {', '.join(map(str, TRITON_DTYPES))}; x is {x.dtype}. Ask for 'torch'."
        )
