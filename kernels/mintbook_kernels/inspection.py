"""What the Triton kernels would do for a batch on a named GPU: counted and calculated, nothing is run or measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch

from mintbook_kernels.gpus import GPUS, TARGETS, Gpu
from mintbook_kernels.launches import (
    Launch,
    expand_launch,
    factor_grad_launch,
    gathered_expand_launch,
    gathered_shrink_launch,
    input_grad_launch,
    shrink_launch,
)
from mintbook_kernels.resources import Program, Resources, Table, read_table, spell
from mintbook_kernels.segments import Segments
from mintbook_kernels.workload import Block, Part, Workload

if TYPE_CHECKING:
    import polars as pl

PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
OPS = ("grouped", "gathered")
ALIGNED = {"ALIGN": 16}
"""Banks whose columns begin and end at multiples of 16, as in a model."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """The linears of one layer that share an input."""

    name: str
    width_in: int
    """H."""
    widths_out: tuple[int, ...]
    """O_j of each of the J linears."""
    ranks: tuple[tuple[int, ...], ...] | None = None
    """``[J, S]``: every slot's true rank at each linear; ``None`` where it is the rank of the slot's page."""


def inspect(
    slots: Sequence[int],
    ranks: Sequence[int],
    layers: Sequence[LayerShape],
    *,
    op: str = "grouped",
    backward: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    gpu: str = "H100",
) -> pl.DataFrame:
    """Count what each launch of an op would do for a batch, and the time that a GPU's published peaks allow; a frame.

    ``slots [T]`` is the slot of each row, −1 for none; ``ranks [S]`` the page rank of each slot; ``op`` "grouped" or
    "gathered". With ``backward`` the launches of the backward of "grouped" follow, where every factor is trained and dx
    is needed. Needs polars, but neither Triton nor a GPU: this is arithmetic and no measurement, and a launch takes
    longer than ``bound_us``. One row for each launch, in their order, with the columns

    - ``layer``, ``pass``, ``kernel``, ``grid``; its ``blocks``, and the ``idle_blocks`` that return at once;
    - ``rows`` that meet a rank above 0; ``rank_rows`` of the slots in use, summed over the targets;
    - ``padding``: the share of the computed tiles where there is no row, no rank-row or no column;
    - ``flops``: 2 for each multiply-add that is not padding;
    - ``bytes_read``, ``bytes_written``: every number of x, h, y and the factors once, as if caches were perfect, and
      without the batch's tables (a few bytes for each row and slot); ``intensity`` = FLOPs / bytes;
    - ``bandwidth_us``: these bytes at the GPU's memory bandwidth; ``compute_us``: the computed tiles, padding too, at
      its peak, of the tensor cores where the kernel uses them; ``bound_us`` the larger, ``limit`` which it is;
    - ``registers`` … ``instructions`` as in `Resources`, from resources.csv, null where it does not have the program;
    - ``gpu``, and ``triton``, the version that compiled.

    Raises `ValueError` for an op, a precision or a GPU that is not known, for a slot outside −1 … S − 1, and for
    ``backward`` of "gathered", which has none.

    >>> inspect([0, 0, 1], [8, 16], [LayerShape("gate,up", 576, (1536, 1536))], op="gathered")["blocks"].to_list()
    [3, 36]
    """
    import polars as pl

    _check(op, dtype, gpu, backward=backward)
    page_ranks = torch.tensor(ranks, dtype=torch.int32)
    segments = Segments.of(slots, page_ranks.cumsum(0) - page_ranks, page_ranks)
    version, table = _tabled(read_table())
    rows = []
    for shape in [] if segments.empty else layers:
        layer = _Layer.of(shape, ranks, segments, dtype.itemsize)
        for direction, launch, work in _steps(layer, op, backward=backward):
            head = {"layer": shape.name, "pass": direction, "kernel": launch.kernel, "grid": list(launch.grid)}
            program = Program(
                GPUS[gpu].target, launch.kernel, PRECISIONS[dtype], spell(launch.constants | ALIGNED), launch.tile.warps
            )
            bounds = _bounds(launch, work, GPUS[gpu], dtype)
            rows.append(head | _counts(launch, work) | bounds | _taken(table.get(program), GPUS[gpu].target))
    return pl.DataFrame(rows, schema=_schema()).with_columns(gpu=pl.lit(gpu), triton=pl.lit(version))


def _check(op: str, dtype: torch.dtype, gpu: str, *, backward: bool) -> None:
    if op not in OPS:
        raise ValueError(f"op is {op!r}; there are {' and '.join(map(repr, OPS))}.")
    if dtype not in PRECISIONS:
        raise ValueError(f"The Triton kernels take {', '.join(map(str, PRECISIONS))}; dtype is {dtype}.")
    if gpu not in GPUS:
        raise ValueError(f"The GPU {gpu!r} is not known; there are {', '.join(GPUS)}.")
    if backward and op == "gathered":
        raise ValueError("backward was asked of gathered rows, which have no gradient; inspect 'grouped'.")


def _tabled(table: Table) -> tuple[str, dict[Program, Resources]]:
    """Return the rows of the installed Triton, or else of the newest that was tabled."""
    try:
        installed = metadata.version("triton")
    except metadata.PackageNotFoundError:
        installed = ""
    newest = max(table, key=lambda version: tuple(map(int, version.split("."))))
    version = installed if installed in table else newest
    return version, table[version]


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer's part of the batch."""

    segments: Segments
    itemsize: int
    targets: int
    a: tuple[Block, ...]
    """The side that meets x: the rank-rows of all targets, counted through."""
    b: tuple[Block, ...]
    """The sides that meet y."""

    @classmethod
    def of(cls, shape: LayerShape, page_ranks: Sequence[int], segments: Segments, itemsize: int) -> _Layer:
        targets = len(shape.widths_out)
        ranks = shape.ranks or (tuple(page_ranks),) * targets
        if len(ranks) != targets or any(len(of_target) != len(page_ranks) for of_target in ranks):
            raise ValueError(
                f"{shape.name} has {targets} targets, and the batch {len(page_ranks)} slots; its ranks are "
                f"{len(ranks)} × {sorted({len(of_target) for of_target in ranks})}."
            )
        together = Block(shape.width_in, tuple(map(sum, zip(*ranks, strict=True))))
        each = tuple(Block(width, of_target) for width, of_target in zip(shape.widths_out, ranks, strict=True))
        return cls(segments, itemsize, targets, (together,), each)

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(block.width for block in self.b)

    def chunks(self) -> list[Part]:
        return list(map(Part, self.segments.chunk_slot.tolist(), self.segments.chunk_len.tolist()))

    def slots(self) -> list[Part]:
        return list(map(Part, self.segments.active.tolist(), self.segments.active_bounds.diff().tolist()))

    def rows(self) -> list[Part]:
        return [Part(slot, 1) for slot in self.segments.slots.tolist() if slot >= 0]


def _steps(layer: _Layer, op: str, *, backward: bool) -> Iterator[tuple[str, Launch, Workload]]:
    """Yield the launches as the ops make them."""
    segments, itemsize, targets = layer.segments, layer.itemsize, layer.targets

    def step(launch: Launch, parts: list[Part], blocks: tuple[Block, ...]) -> tuple[Launch, Workload]:
        return launch, Workload.of(launch, parts, blocks, itemsize)

    if op == "gathered":
        yield "forward", *step(gathered_shrink_launch(segments, targets), layer.rows(), layer.a)
        yield "forward", *step(gathered_expand_launch(segments, layer.widths), layer.rows(), layer.b)
        return
    yield "forward", *step(shrink_launch(segments, itemsize, targets, shared=True), layer.chunks(), layer.a)
    yield "forward", *step(expand_launch(segments, itemsize, layer.widths), layer.chunks(), layer.b)
    if not backward:
        return
    width = layer.a[0].width
    of_a = factor_grad_launch(segments, itemsize, targets, [width], shared=True)
    of_b = factor_grad_launch(segments, itemsize, targets, layer.widths, shared=False)
    yield "backward", *step(shrink_launch(segments, itemsize, targets, shared=False), layer.chunks(), layer.b)
    yield "backward", *step(of_a, layer.slots(), layer.a)
    yield "backward", *step(of_b, layer.slots(), layer.b)
    yield "backward", *step(input_grad_launch(segments, itemsize, targets, width), layer.chunks(), layer.a)


def _counts(launch: Launch, work: Workload) -> dict[str, Any]:
    return {
        "blocks": launch.programs,
        "idle_blocks": launch.programs - work.working,
        "rows": work.rows,
        "rank_rows": work.rank_rows,
        "padding": 1 - work.products / work.computed if work.computed else 0.0,
        "flops": 2 * work.products,
        "bytes_read": work.read,
        "bytes_written": work.written,
    }


def _bounds(launch: Launch, work: Workload, card: Gpu, dtype: torch.dtype) -> dict[str, Any]:
    moved = work.read + work.written
    tensor_cores = dtype.itemsize == 2 and not launch.kernel.startswith("gathered")
    bandwidth, compute = card.microseconds(moved, 2 * work.computed, tensor_cores=tensor_cores)
    return {
        "intensity": 2 * work.products / moved if moved else 0.0,
        "bandwidth_us": bandwidth,
        "compute_us": compute,
        "bound_us": max(bandwidth, compute),
        "limit": "bandwidth" if bandwidth >= compute else "compute",
    }


def _taken(resources: Resources | None, target: str) -> dict[str, Any]:
    found = dict.fromkeys(field.name for field in fields(Resources)) if resources is None else asdict(resources)
    return {**found, "shared_limit": TARGETS[target].shared_limit}


def _schema() -> dict[str, Any]:
    import polars as pl

    whole = ("blocks", "idle_blocks", "rows", "rank_rows", "flops", "bytes_read", "bytes_written")
    return {
        **dict.fromkeys(("layer", "pass", "kernel"), pl.String),
        "grid": pl.List(pl.Int64),
        **dict.fromkeys(whole[:4], pl.Int64),
        "padding": pl.Float64,
        **dict.fromkeys(whole[4:], pl.Int64),
        **dict.fromkeys(("intensity", "bandwidth_us", "compute_us", "bound_us"), pl.Float64),
        "limit": pl.String,
        **dict.fromkeys(("registers", "spilled", "shared", "shared_limit"), pl.Int64),
        "instruction": pl.String,
        "instructions": pl.Int64,
    }
