"""bf16 in Triton's interpreter, which computes wrongly with it: numpy has no such type, so it holds the bits as uint16.

``tl.dot`` multiplies the bit patterns as integers, and a conversion from fp32 cuts the low bits off instead of rounding
to nearest even. Both are mended here, for the tests only. The kernels do no other arithmetic in bf16.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter


def mend_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``tl.dot`` and the conversion to bf16 compute what a GPU computes, until the test ends."""
    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def rounding_convert(values, source, target, mode):
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(values, source, target, mode)
        rounded = torch.from_numpy(np.array(values)).to(torch.bfloat16)
        return rounded.view(torch.int16).numpy().view(np.uint16)

    def widening_dot(builder, a, b, acc, *options):
        a, b = (builder.cast_impl(t, tl.float32) if t.dtype.scalar == tl.bfloat16 else t for t in (a, b))
        return dot(builder, a, b, acc, *options)

    monkeypatch.setattr(interpreter, "_convert_float", rounding_convert)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", widening_dot)
