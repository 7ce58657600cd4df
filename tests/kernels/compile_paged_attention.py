"""Compile the attention kernel for GPUs that are not here, and print what came out as JSON."""

from __future__ import annotations

import json
from typing import Any

import triton
from compile_ahead import TARGETS, facts
from mintbook_kernels.paged_attention.triton_kernel import HEADS, Tile, paged_attention_kernel, tile_for
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

BYTES = {"bf16": 2, "fp32": 4}
POINTERS = {"tables": "*i32", "lengths": "*i32", "scale_log2": "fp32"}
UNALIGNED = {"scale_log2", "sharing", "table_row"}


def build(size: int, precision: str, tile: Tile, target: GPUTarget) -> Any:
    """Compile as the JIT would for aligned pointers, 3 query heads of a key head and tables of any length."""
    constants = {"PAGE": 16, "BLOCK_G": HEADS, "BLOCK_T": tile.tokens, "BLOCK_D": size}
    signature, aligned = {}, {}
    for i, name in enumerate(paged_attention_kernel.arg_names):
        kind = f"*{precision}" if name in ("q", "keys", "values", "out") else POINTERS.get(name, "i32")
        signature[name] = "constexpr" if name in constants else kind
        if name not in constants and name not in UNALIGNED:
            aligned[i,] = [["tt.divisibility", 16]]
    source = ASTSource(paged_attention_kernel, signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=target, options=tile.options)


def main() -> None:
    out = {}
    cases = [(name, size, "bf16") for name in TARGETS for size in (64, 512)]
    for name, size, precision in [*cases, ("sm80", 512, "fp32")]:  # sm80 has the fewest registers to spare
        found = facts(build(size, precision, tile_for(size, BYTES[precision]), TARGETS[name]))
        out[f"{name} {precision} {size}"] = found
    out["sm80 bf16 control"] = facts(build(512, "bf16", Tile(256, 4, 2), TARGETS["sm80"]))
    print(json.dumps(out))


if __name__ == "__main__":
    main()
