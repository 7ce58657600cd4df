"""Compile some programs ahead of time and print what came out as JSON; run by `test_ahead_of_time.py`."""

from __future__ import annotations

import json
from dataclasses import asdict, astuple, replace

import torch
import triton
from mintbook_kernels.ahead_of_time import compiled, programs

TARGETS = ("sm_80", "sm_90", "gfx942")


def main() -> None:
    """Take the first and last tiles for three targets in bf16, and the last in fp32 where registers are fewest."""
    chosen = programs(TARGETS, [torch.bfloat16], [3], [5, 256], [64, 512])
    chosen |= programs(["sm_80"], [torch.float32], [3], [256], [512])
    found = [(asdict(program), asdict(compiled(launch, program.target))) for program, launch in chosen.items()]
    shrink = next(launch for program, launch in chosen.items() if program.kernel == "shrink_kernel")
    too_large = replace(shrink, arguments=shrink.arguments | {"BLOCK_M": 128, "BLOCK_R": 128, "BLOCK_K": 256})
    print(
        json.dumps(
            {
                "triton": triton.__version__,
                "all": [astuple(program) for program in programs()],
                "compiled": found,
                "control": asdict(compiled(too_large, "sm_80")),
            }
        )
    )


if __name__ == "__main__":
    main()
