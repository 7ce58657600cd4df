"""Triton's interpreter, mended for the tests: it is wrong in bf16, and must be chosen before Triton is imported.

numpy has no bf16, so the interpreter holds the bits as uint16: ``tl.dot`` multiplies the bit patterns as integers, and
a conversion from fp32 cuts the low bits off instead of rounding to nearest even. (The kernels do no other arithmetic in
bf16.) And a function, Triton's own ``tl.sum`` too, is compiled or interpreted as the variable said when it was
decorated, which another test may have caused by importing transformers. Here every function is interpreted.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction


def interpret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every kernel be interpreted until the test ends, and let the interpreter compute what a GPU computes."""
    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def rounding_convert(values, source, target, mode):
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(values, source, target, mode)
        rounded = torch.from_numpy(np.array(values)).to(torch.bfloat16)
        return rounded.view(torch.int16).numpy().view(np.uint16)

    def widening_dot(builder, a, b, acc, *options):
        a, b = (builder.cast_impl(t, tl.float32) if t.dtype.scalar == tl.bfloat16 else t for t in (a, b))
        return dot(builder, a, b, acc, *options)

    def call(function, *args, **options):
        return interpreter.InterpretedFunction(function.fn)(*args, **options)

    def launch(function, *args, **options):
        return interpreter.InterpretedFunction(function.fn).run(*args, **options)

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(interpreter, "_convert_float", rounding_convert)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", widening_dot)
    monkeypatch.setattr(JITFunction, "__call__", call)
    monkeypatch.setattr(JITFunction, "run", launch)
