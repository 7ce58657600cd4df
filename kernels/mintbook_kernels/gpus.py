"""What GPUs are said to reach: published peaks that a roofline is drawn from, and what the compiler needs to know.

Memory bandwidth and dense peaks (no sparsity) as the makers publish them; a data sheet that gives only the figure with
2:4 sparsity is halved. No kernel reaches them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """An instruction set that Triton compiles for."""

    backend: str
    arch: int | str
    warp: int
    """Threads in a warp (NVIDIA) or a wavefront (AMD)."""
    shared_limit: int
    """Bytes of shared memory (LDS) that one program may have; Triton compiles what asks for more, and only the launch
    fails. CUDA C++ Programming Guide, *Technical Specifications per Compute Capability*; AMD CDNA 3 white paper."""


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 163 * 1024),
    "sm_89": Target("cuda", 89, 32, 99 * 1024),
    "sm_90": Target("cuda", 90, 32, 227 * 1024),
    "gfx942": Target("hip", "gfx942", 64, 64 * 1024),
}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU's published peaks."""

    target: str
    """A key of `TARGETS`."""
    bandwidth: float
    """Memory bandwidth in GB/s."""
    tensor: float
    """Dense bf16 and fp16 products with fp32 sums, in TFLOP/s."""
    fp32: float
    """fp32 without tensor cores, in TFLOP/s."""
    source: str

    def microseconds(self, nbytes: int, flops: int, *, tensor_cores: bool) -> tuple[float, float]:
        """Return the least time that moving ``nbytes`` and computing ``flops`` take, each at its peak."""
        peak = self.tensor if tensor_cores else self.fp32
        return nbytes / self.bandwidth / 1e3, flops / peak / 1e6


GPUS = {
    "A100": Gpu("sm_80", 2039, 312, 19.5, "NVIDIA A100 data sheet, 80 GB SXM"),
    "H100": Gpu("sm_90", 3350, 989.4, 66.9, "NVIDIA H100 architecture white paper and data sheet, SXM5 80 GB"),
    "H200": Gpu("sm_90", 4800, 989.4, 66.9, "NVIDIA H200 data sheet, SXM 141 GB"),
    "MI300X": Gpu("gfx942", 5300, 1307.4, 163.4, "AMD Instinct MI300X data sheet"),
    "RTX 4090": Gpu("sm_89", 1008, 165.2, 82.6, "NVIDIA Ada architecture white paper, appendix A"),
    "L4": Gpu("sm_89", 300, 121, 30.3, "NVIDIA L4 data sheet (242 TFLOP/s with sparsity)"),
}
