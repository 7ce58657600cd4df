"""Which implementation of an op runs, and why."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mintbook_kernels.native import library

NAMES = ("triton", "native", "torch")
VARIABLE = "MINTBOOK_KERNELS"


class BackendError(RuntimeError):
    """A backend was asked for by name, and it cannot run here."""


@dataclass(frozen=True, slots=True)
class Backend:
    """The implementation that runs on a device.

    ``triton``: the Triton kernels; ``native``: the compiled op for CPUs, whose gradients are plain torch's; ``torch``:
    plain torch, which runs on every device.
    """

    name: str
    reason: str


def backend(device: torch.device | str, requested: str | None = None, dtype: torch.dtype = torch.bfloat16) -> Backend:
    """Say which implementation would run for tensors of a precision on a device, and why.

    ``requested``, or else the environment variable ``MINTBOOK_KERNELS``, names one; `BackendError` is raised when
    it cannot run. Otherwise Triton is taken on CUDA and ROCm devices, the compiled op on CPUs where it was compiled
    and takes the precision (bf16, fp32), plain torch elsewhere; a GPU without Triton is served by plain torch, and a
    warning says so once.

    >>> backend("cpu", "torch").name
    'torch'
    """
    device = torch.device(device)
    asked = requested or os.environ.get(VARIABLE)
    if asked:
        by = "the caller" if requested else f"{VARIABLE}={asked}"
        return _requested(asked, by, device, dtype)
    if device.type == "cpu":
        return _on_cpu(dtype)
    if device.type != "cuda":
        return Backend("torch", f"plain torch: Triton has no {device.type} target")
    missing = _why_no_triton()
    if missing is None:
        return Backend("triton", f"{device.type} device, and Triton can be imported")
    _warn_once(missing)
    return Backend("torch", f"plain torch on {device.type}, because {missing}")


@cache
def _on_cpu(dtype: torch.dtype) -> Backend:
    missing = _why_not_native("cpu", dtype)
    if missing is None:
        return Backend("native", f"compiled op, {library.features()}")
    return Backend("torch", f"plain torch: {missing}")


def _why_not_native(device_type: str, dtype: torch.dtype) -> str | None:
    if device_type != "cpu":
        return f"the compiled op is for CPUs, not {device_type}"
    if dtype not in library.DTYPES:
        return f"the compiled op takes {' and '.join(map(str, library.DTYPES))}, not {dtype}"
    missing = library.why_missing()
    return None if missing is None else f"the compiled op is missing ({missing})"


def backend_name(tensor: Tensor, requested: str | None) -> str:
    """Return the name that `backend` gives for a tensor: remembered, because every call of an op asks."""
    return _remembered(tensor.device, requested, requested or os.environ.get(VARIABLE), tensor.dtype)


@cache
def _remembered(device: torch.device, requested: str | None, _asked: str | None, dtype: torch.dtype) -> str:
    return backend(device, requested, dtype).name


def _requested(asked: str, by: str, device: torch.device, dtype: torch.dtype) -> Backend:
    if asked not in NAMES:
        raise BackendError(f"{by} asks for the backend {asked!r}; there are {', '.join(map(repr, NAMES))}.")
    if asked == "torch":
        return Backend("torch", f"asked for by {by}")
    if asked == "native":
        missing = _why_not_native(device.type, dtype)
        if missing is not None:
            raise BackendError(f"{by} asks for the backend 'native', but {missing}. Ask for 'torch'.")
        return Backend("native", f"compiled op, {library.features()}; asked for by {by}")
    missing = _why_no_triton()
    if missing is not None:
        raise BackendError(f"{by} asks for the backend 'triton', but {missing}. Install triton, or ask for 'torch'.")
    if device.type == "cuda":
        return Backend("triton", f"asked for by {by}")
    if os.environ.get("TRITON_INTERPRET") == "1":
        return Backend("triton", f"asked for by {by}; TRITON_INTERPRET=1 interprets it on {device.type}")
    raise BackendError(
        f"{by} asks for the backend 'triton' for tensors on {device.type}, which Triton cannot compile for. Move them "
        "to a GPU, set TRITON_INTERPRET=1 before Triton is imported to interpret the kernels (slow, for tests), or ask "
        "for 'torch'."
    )


@cache
def _why_no_triton() -> str | None:
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"triton cannot be imported ({error})"
    return None


@cache
def _warn_once(missing: str) -> None:
    warnings.warn(
        f"mintbook_kernels runs plain torch on the GPU, because {missing}. Install triton for the fused kernels, or "
        f"set {VARIABLE}=torch to say that plain torch is meant.",
        RuntimeWarning,
        stacklevel=3,
    )
