"""Compile every kernel for GPUs that are not here, and print what came out as JSON; run by `test_ahead_of_time.py`."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from mintbook_kernels.gathered_lora.triton_kernel import gathered_expand_kernel, gathered_shrink_kernel
from mintbook_kernels.grouped_lora.triton_kernel import expand_kernel, shrink_kernel
from mintbook_kernels.lora_grad.triton_kernel import factor_grad_kernel, input_grad_kernel
from mintbook_kernels.tiles import GATHERED, GROUPED, Tile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "sm80": GPUTarget("cuda", 80, 32),
    "sm90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TABLES = {"order", "chunk_slot", "chunk_start", "chunk_len", "active", "active_bounds", "row_slots", "rank", "cap"}
STARTS = {"start", "table"}
SUMS = {"h", "dh", "scale"}
NUMBERS = {"slots", "page_rank", "x_stride", "y_stride", "bank_stride", "h_stride"}
TARGETS_OF_A_CALL = 3
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def grouped(tile: Tile) -> list[tuple[Any, dict[str, Any]]]:
    """Return the kernels of grouped rows and gradients with their constants."""
    sizes = {"J": TARGETS_OF_A_CALL, "ALIGN": 16, "BLOCK_M": 64, "BLOCK_R": tile.rank}
    out = [(shrink_kernel, {"SHARED": shared, **sizes, "BLOCK_K": tile.columns}) for shared in (True, False)]
    out += [(kernel, {**sizes, "BLOCK_N": tile.columns}) for kernel in (expand_kernel, input_grad_kernel)]
    return out + [
        (factor_grad_kernel, {"SHARED": shared, **sizes, "BLOCK_N": tile.columns}) for shared in (True, False)
    ]


def gathered(tile: Tile) -> list[tuple[Any, dict[str, Any]]]:
    """Return the kernels of gathered rows with their constants."""
    sizes = {"J": TARGETS_OF_A_CALL, "ALIGN": 16, "BLOCK_R": tile.rank}
    return [
        (gathered_shrink_kernel, {**sizes, "BLOCK_K": tile.columns}),
        (gathered_expand_kernel, {**sizes, "BLOCK_N": tile.columns}),
    ]


def calls(target: str) -> list[tuple[str, Any, dict[str, Any], str, Tile]]:
    """Return name, kernel, constants, precision and tile of what is compiled: the first and last tile of each table."""
    todo = [(grouped, GROUPED[2][rank], "bf16") for rank in (16, 256)]
    if target == "sm80":  # the fewest registers to spare
        todo.append((grouped, GROUPED[4][256], "fp32"))
    todo += [(gathered, GATHERED[rank], "bf16") for rank in (16, 256)]
    return [
        (
            f"{kernel.fn.__name__}{'_shared' * constants.get('SHARED', False)} {tile.rank} {precision}",
            kernel,
            constants,
            precision,
            tile,
        )
        for kernels, tile, precision in todo
        for kernel, constants in kernels(tile)
    ]


def build(kernel: Any, constants: dict[str, Any], precision: str, tile: Tile, target: GPUTarget) -> Any:
    """Compile as the JIT would for aligned pointers and sizes that are multiples of 16."""

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name in NUMBERS:
            return "i32"
        if name == "bank" and kernel is factor_grad_kernel:
            return "*fp32"
        return "*i32" if name in TABLES else "*i64" if name in STARTS else "*fp32" if name in SUMS else f"*{precision}"

    signature = {name: kind(name) for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name not in constants}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=target, options=tile.options)


def facts(compiled: Any) -> dict[str, int]:
    """Return shared memory in bytes, registers, spilled registers or stack bytes, and matrix instructions."""
    shared = compiled.metadata.shared
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]
        count = {name: int(re.search(rf"\.{name}:\s+(\d+)", text)[1]) for name in ("vgpr_count", "vgpr_spill_count")}
        matrix = len(re.findall("v_mfma_", text))
        return {
            "shared": shared,
            "registers": count["vgpr_count"],
            "spilled": count["vgpr_spill_count"],
            "matrix": matrix,
        }
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    matrix = len(re.findall(r"mma\.sync\.aligned|wgmma\.mma_async", compiled.asm["ptx"]))
    return {"shared": shared, "registers": registers, "spilled": stack, "matrix": matrix}


def main() -> None:
    out = {}
    for target, gpu in TARGETS.items():
        for name, kernel, constants, precision, tile in calls(target):
            out[f"{target} {name}"] = facts(build(kernel, constants, precision, tile, gpu))
    too_large = {"SHARED": True, "J": 1, "ALIGN": 16, "BLOCK_M": 128, "BLOCK_R": 128, "BLOCK_K": 256}
    out["sm80 control"] = facts(build(shrink_kernel, too_large, "bf16", GROUPED[2][256], TARGETS["sm80"]))
    print(json.dumps(out))


if __name__ == "__main__":
    main()
