"""Compile every Triton kernel for GPUs that are not here, and keep what it takes: registers, spills, shared memory.

``python -m mintbook_kernels.ahead_of_time`` replaces the rows of the installed Triton version in resources.csv. No GPU
is needed: the launchers are called with their launches recorded, so that each kernel is compiled with the very
constants, types and warps that it would be launched with.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from mintbook_kernels.factors import Factors
from mintbook_kernels.gathered_lora import triton_kernel as gathered
from mintbook_kernels.gpus import TARGETS
from mintbook_kernels.grouped_lora import triton_kernel as grouped
from mintbook_kernels.lora_grad import triton_kernel as gradients
from mintbook_kernels.paged_attention import triton_kernel as attention
from mintbook_kernels.resources import Program, Resources, merged, read_table, spell, write_table
from mintbook_kernels.segments import Segments
from mintbook_kernels.tiles import GATHERED, GROUPED

TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
}
DTYPES = (torch.bfloat16, torch.float32)
"""fp16 has the tiles of bf16 and is not tabled."""
SHARES = (1, 2, 3)
"""Numbers of targets that share an input: one alone; gate and up; q, k and v."""
SIZES = (64, 128, 256, 512)
"""Numbers of an attention head."""
WIDTH = 64
UNALIGNED = {"sharing", "table_row", "scale_log2"}
"""Query heads of a key head, blocks of the longest sequence, and a factor: seldom multiples of 16."""
NVIDIA_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


@dataclass(frozen=True, eq=False)
class Recorded:
    """One launch that was recorded instead of made."""

    kernel: JITFunction[Any]
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    """By name; the compile-time ones too."""
    options: dict[str, Any]
    """How to compile: warps and the like."""

    @property
    def name(self) -> str:
        """The kernel's name."""
        return str(self.kernel.fn.__name__)

    @property
    def constants(self) -> dict[str, Any]:
        """The compile-time arguments."""
        return {p.name: self.arguments[p.name] for p in self.kernel.params if p.is_constexpr}

    def program(self, target: str, precision: str) -> Program:
        """Return the program that this launch would run on ``target``."""
        return Program(target, self.name, precision, spell(self.constants), self.options["num_warps"])


@contextmanager
def recorded() -> Iterator[list[Recorded]]:
    """Record this process's launches while the block runs, instead of making them."""
    launches: list[Recorded] = []

    def record(kernel: JITFunction[Any], *values: Any, grid: tuple[int, ...], warmup: bool, **named: Any) -> None:
        arguments = dict(zip(kernel.arg_names, values, strict=False))
        arguments |= {name: value for name, value in named.items() if name in kernel.arg_names}
        options = {name: value for name, value in named.items() if name not in kernel.arg_names}
        launches.append(Recorded(kernel, tuple(grid), arguments, options))

    run, JITFunction.run = JITFunction.run, record
    try:
        yield launches
    finally:
        JITFunction.run = run


def launches_of(dtype: torch.dtype, rank: int, targets: int) -> list[Recorded]:
    """Return every launch that the ops make, forward and backward, for one adapter of one rank."""
    start, page_rank = torch.tensor([0]), torch.tensor([rank], dtype=torch.int32)
    segments = Segments.of([0] * WIDTH, start, page_rank)
    factors, grads = (_factors(bank, start, page_rank, targets) for bank in (dtype, torch.float32))
    x, y = torch.zeros(WIDTH, WIDTH, dtype=dtype), torch.zeros(WIDTH, targets * WIDTH, dtype=dtype)
    with recorded() as launches:
        grouped.add_update(y, x, factors, segments)
        gradients.add_gradients(y, x, None, factors, segments, grads, need_dx=True)
        gathered.add_update(y, x, factors, segments)
    return launches


def attention_launches(dtype: torch.dtype, size: int) -> list[Recorded]:
    """Return the launch of attention for three query heads of one key head of ``size`` numbers, in blocks of 16."""
    q, cache = torch.zeros(1, 3, size, dtype=dtype), torch.zeros(16, 1, size, dtype=dtype)
    one = torch.ones(1, 1, dtype=torch.int32)
    with recorded() as launches:
        attention.attend(q, cache, cache, one, one[0], block=16, scale=1.0)
    return launches


def _factors(dtype: torch.dtype, start: Tensor, page_rank: Tensor, targets: int) -> Factors:
    bank = torch.zeros(int(page_rank), 2 * targets * WIDTH, dtype=dtype)
    views = tuple(bank[:, first : first + WIDTH] for first in range(0, bank.shape[1], WIDTH))
    return Factors(views[:targets], views[targets:], start, page_rank.repeat(targets, 1), torch.ones(targets, 1))


def programs(
    targets: Iterable[str] = TARGETS,
    dtypes: Iterable[torch.dtype] = DTYPES,
    shares: Iterable[int] = SHARES,
    ranks: Iterable[int] | None = None,
    sizes: Iterable[int] = SIZES,
) -> dict[Program, Recorded]:
    """Return every program that the tables of tiles can choose, each with a launch that chooses it.

    ``shares`` are numbers of targets that share an input, ``sizes`` those of attention's heads. ``ranks`` leaves only
    what these choose, instead of every bound of the tables.
    """
    launches = [
        (dtype, launch)
        for dtype in dtypes
        for share in shares
        for rank in ranks or _ranks(dtype, share)
        for launch in launches_of(dtype, rank, share)
    ]
    launches += [(dtype, launch) for dtype in dtypes for size in sizes for launch in attention_launches(dtype, size)]
    return {launch.program(target, TYPES[dtype]): launch for dtype, launch in launches for target in targets}


def _ranks(dtype: torch.dtype, targets: int) -> list[int]:
    """Return ranks that reach every tile, by themselves and as many lanes as the targets have together."""
    bounds = {*GROUPED[dtype.itemsize], *GATHERED}
    return sorted(bounds | {bound // targets for bound in bounds})


def compiled(launch: Recorded, target: str) -> Resources:
    """Compile as the launch would, for a GPU that need not be here.

    Every address and size but `UNALIGNED` is taken as a multiple of 16; where one is not, Triton compiles another
    program, with narrower loads.
    """
    goal, constants = TARGETS[target], launch.constants
    names = launch.kernel.arg_names
    signature = {name: "constexpr" if name in constants else _type(launch.arguments[name]) for name in names}
    free = UNALIGNED | constants.keys()
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name not in free}
    source = ASTSource(launch.kernel, signature, constexprs=constants, attrs=aligned)
    return _resources(triton.compile(source, GPUTarget(goal.backend, goal.arch, goal.warp), launch.options))


def _type(value: Tensor | float) -> str:
    if isinstance(value, Tensor):
        return f"*{TYPES[value.dtype]}"
    return "fp32" if isinstance(value, float) else "i32"


def _resources(result: Any) -> Resources:
    read = _amd if "amdgcn" in result.asm else _nvidia
    return read(result.asm, int(result.metadata.shared))


def _amd(asm: dict[str, Any], shared: int) -> Resources:
    text = asm["amdgcn"]
    registers = int(_only(r"\.vgpr_count:\s+(\d+)", text))
    spilled = int(_only(r"\.private_segment_fixed_size:\s+(\d+)", text))
    return Resources(registers, spilled, shared, *_counted(text, r"\bv_(mfma)_"))


def _nvidia(asm: dict[str, Any], shared: int) -> Resources:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        usage, code = _run("cuobjdump", "-res-usage", file.name), _run("nvdisasm", file.name)
    registers, spilled = (int(_only(rf"\b{name}:(\d+)", usage)) for name in ("REG", "STACK"))
    return Resources(registers, spilled, shared, *_counted(code, r"\b(HG?MMA)\."))


def _run(tool: str, *arguments: str) -> str:
    command = [str(NVIDIA_TOOLS / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _only(pattern: str, text: str) -> str:
    found: list[str] = re.findall(pattern, text)
    if len(found) != 1:
        raise ValueError(f"The compiler's output has {pattern!r} {len(found)} times; one kernel should have it once.")
    return found[0]


def _counted(text: str, pattern: str) -> tuple[str, int]:
    found = re.findall(pattern, text)
    return "+".join(sorted({name.upper() for name in found})), len(found)


def main(progress: Callable[[str], None] = print) -> None:
    """Replace the rows of the installed Triton version."""
    rows = []
    for program, launch in programs().items():
        rows.append((program, compiled(launch, program.target)))
        progress(f"{program} {rows[-1][1]}")
    write_table(merged(read_table(), triton.__version__, rows))


if __name__ == "__main__":
    main()
