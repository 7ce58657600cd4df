"""Which implementation of an op runs, and why."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import cache

import torch

NAMES = ("triton", "cpu")
VARIABLE = "MINTBOOK_KERNELS"


class BackendError(RuntimeError):
    """A backend was asked for by name, and it cannot run here."""


@dataclass(frozen=True, slots=True)
class Backend:
    """The implementation that runs on a device.

    ``triton``: the Triton kernels; ``cpu``: plain torch, which also runs on other devices where Triton is missing.
    """

    name: str
    reason: str


def backend(device: torch.device | str, requested: str | None = None) -> Backend:
    """Say which implementation would run for tensors on ``device``, and why.

    ``requested``, or else the environment variable ``MINTBOOK_KERNELS``, names one; `BackendError` is raised when
    it cannot run. Otherwise Triton is taken on CUDA and ROCm devices, plain torch elsewhere; a GPU without Triton is
    served by plain torch, and a warning says so once.

    >>> backend("cpu", "cpu").name
    'cpu'
    """
    device = torch.device(device)
    asked = requested or os.environ.get(VARIABLE)
    if asked:
        by = "the caller" if requested else f"{VARIABLE}={asked}"
        return _requested(asked, by, device)
    if device.type != "cuda":
        return Backend("cpu", f"plain torch: Triton has no {device.type} target")
    missing = _why_no_triton()
    if missing is None:
        return Backend("triton", f"{device.type} device, and Triton can be imported")
    _warn_once(missing)
    return Backend("cpu", f"plain torch on {device.type}, because {missing}")


def _requested(asked: str, by: str, device: torch.device) -> Backend:
    if asked not in NAMES:
        raise BackendError(f"{by} asks for the backend {asked!r}; there are {' and '.join(map(repr, NAMES))}.")
    if asked == "cpu":
        return Backend("cpu", f"asked for by {by}")
    missing = _why_no_triton()
    if missing is not None:
        raise BackendError(f"{by} asks for the backend 'triton', but {missing}. Install triton, or ask for 'cpu'.")
    if device.type == "cuda":
        return Backend("triton", f"asked for by {by}")
    if os.environ.get("TRITON_INTERPRET") == "1":
        return Backend("triton", f"asked for by {by}; TRITON_INTERPRET=1 interprets it on {device.type}")
    raise BackendError(
        f"{by} asks for the backend 'triton' for tensors on {device.type}, which Triton cannot compile for. Move them "
        "to a GPU, set TRITON_INTERPRET=1 before Triton is imported to interpret the kernels (slow, for tests), or ask "
        "for 'cpu'."
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
        f"set {VARIABLE}=cpu to say that plain torch is meant.",
        RuntimeWarning,
        stacklevel=3,
    )
