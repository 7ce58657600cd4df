"""The update of a batch by the compiled op."""

from __future__ import annotations

import ctypes
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mintbook_kernels.factors import Factors
from mintbook_kernels.native.library import library
from mintbook_kernels.segments import Segments

LEAST_NS = 15_000.0
"""A batch that takes one thread less than this is not shared out: waking the others costs about as much."""


class _Linear(ctypes.Structure):
    _fields_ = (
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("a_stride", ctypes.c_int64),
        ("b_stride", ctypes.c_int64),
        ("out", ctypes.c_int64),
    )


class _Factors(ctypes.Structure):
    _fields_ = (
        ("linears", ctypes.c_int64),
        ("slots", ctypes.c_int64),
        ("wide_in", ctypes.c_int64),
        ("is_bf16", ctypes.c_int64),
        ("linear", ctypes.c_void_p),
        ("start", ctypes.c_void_p),
        ("rank", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
    )


_prepared: WeakKeyDictionary[Factors, tuple[int, object]] = WeakKeyDictionary()


def add_update(y: Tensor, x: Tensor, factors: Factors, segments: Segments) -> None:
    """Add ``scale[j, s] · (x[t] A_jᵀ) B_jᵀ`` to the columns of linear j of ``y [T, ΣO]`` in place, for ``x [T, H]``.

    s is row t's slot. Sums are in fp32, h is not rounded, y is rounded once. A row's bits depend on that row, its
    slot's factors and the machine's instructions alone: not on the other rows, nor on the number of threads. Rows of
    slot −1 and of rank 0 are not written, and no other slot's factors are read. The operands are those that
    `grouped_lora` has checked. Raises `OSError` where the op is missing, `ValueError` for a rank above 16384.
    """
    prepared = _prepared.get(factors)
    if prepared is None:
        prepared = _prepared[factors] = _prepare(factors)
    op, order = library(), segments.order
    failed = op.add_update(
        prepared[0],
        x.data_ptr(),
        x.stride(0),
        y.data_ptr(),
        y.stride(0),
        segments.slots.data_ptr(),
        order.data_ptr(),
        order.numel(),
        op.level,
        torch.get_num_threads(),
        LEAST_NS,
        op.parallel,
    )
    if not y.is_inference():
        torch.autograd.graph.increment_version(y)
    if failed == 1:
        raise MemoryError(f"No memory for the tiles of {order.numel()} rows.")
    if failed:
        raise ValueError(f"The compiled op takes ranks up to 16384; the largest here is {int(factors.rank.max())}.")


def _prepare(factors: Factors) -> tuple[int, object]:
    """Return the address of the factors' description for C, and what keeps its memory alive.

    The tensors of ``factors`` keep their places as long as ``factors`` lives, so their addresses are written down once;
    ``start``, ``rank`` and ``scale`` are read at every call.
    """
    linears = (_Linear * len(factors.a))(
        *(
            _Linear(a.data_ptr(), b.data_ptr(), a.stride(0), b.stride(0), b.shape[1])
            for a, b in zip(factors.a, factors.b, strict=True)
        )
    )
    described = _Factors(
        factors.targets,
        factors.slots,
        factors.in_features,
        int(factors.dtype == torch.bfloat16),
        ctypes.addressof(linears),
        factors.start.data_ptr(),
        factors.rank.data_ptr(),
        factors.scale.data_ptr(),
    )
    return ctypes.addressof(described), (linears, described)
