"""Triton's interpreter, mended for the tests: it computes wrongly in bf16, and depends on who imported Triton first.

numpy has no bf16, so the interpreter holds the bits as uint16: ``tl.dot`` multiplies the bit patterns as integers, and a
conversion from fp32 cuts the low bits off instead of rounding to nearest even. (The kernels do no other arithmetic in
bf16.) And functions of Triton's own library, such as ``tl.sum``, can be interpreted only when the variable was set
before Triton was imported, which another test may have done by importing transformers.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction


def interpret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let kernels that are first used in this test be interpreted, and let the interpreter compute what a GPU computes."""
    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def rounding_convert(values, source, target, mode):
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(values, source, target, mode)
        rounded = torch.from_numpy(np.array(values)).to(torch.bfloat16)
        return rounded.view(torch.int16).numpy().view(np.uint16)

    def widening_dot(builder, a, b, acc, *options):
        a, b = (builder.cast_impl(t, tl.float32) if t.dtype.scalar == tl.bfloat16 else t for t in (a, b))
        return dot(builder, a, b, acc, *options)

    def call_library(function, *args, **options):
        return interpreter.InterpretedFunction(function.fn)(*args, **options)

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(interpreter, "_convert_float", rounding_convert)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", widening_dot)
    monkeypatch.setattr(JITFunction, "__call__", call_library)
