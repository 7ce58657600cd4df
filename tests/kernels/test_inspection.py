"""What `inspect` calculates is what the kernels do: every launch is counted in the interpreter, address by address."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl
import pytest
import torch
import traffic
from lora_cases import DEVICE, PAGE_RANKS, RANKS, Case, make_case, slots_of
from mintbook_kernels import LayerShape, gathered_lora, grouped_lora, inspect
from mintbook_kernels.gpus import GPUS, TARGETS
from mintbook_kernels.resources import read_table

WIDTH_IN = 96
WIDTHS = (80, 16, 48)
BATCHES = (
    ("uniform", 40, torch.bfloat16, WIDTHS),
    ("identical", 70, torch.float32, WIDTHS),
    ("skewed", 9, torch.float32, WIDTHS[:1]),
)
pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="the kernels are counted in the interpreter")


def grouped(case: Case) -> None:
    grouped_lora(case.y, case.x, case.factors, case.segments, backend="triton")


def gathered(case: Case) -> None:
    gathered_lora(case.y, case.x, case.factors, case.segments, backend="triton")


def training(case: Case) -> None:
    case.grads.rank.copy_(case.factors.rank)
    trigger = torch.zeros(1, requires_grad=True)
    y = grouped_lora(
        case.y, case.x.requires_grad_(), case.factors, case.segments, case.grads, trigger, backend="triton"
    )
    y.backward(case.dy)


def case_of(popularity: str, rows: int, dtype: torch.dtype, widths: tuple[int, ...]) -> Case:
    return make_case(slots_of(popularity, rows), dtype, width_in=WIDTH_IN, widths=widths)


def inspected(case: Case, op: str, *, backward: bool = False) -> pl.DataFrame:
    widths = case.factors.out_features
    shape = LayerShape("layer", WIDTH_IN, widths, RANKS[: len(widths)])
    return inspect(case.slots.tolist(), PAGE_RANKS, [shape], op=op, backward=backward, dtype=case.dtype)


def products(case: Case, side: str) -> int:
    """Count the multiply-adds with A or with B row by row."""
    slots = [slot for slot in case.slots.tolist() if slot >= 0]
    widths = case.factors.out_features if side == "B" else [WIDTH_IN] * case.factors.targets
    return sum(
        int(ranks[slot]) * width for ranks, width in zip(case.factors.rank, widths, strict=True) for slot in slots
    )


@pytest.mark.parametrize(("popularity", "rows", "dtype", "widths"), BATCHES)
@pytest.mark.parametrize(("run", "op"), [(grouped, "grouped"), (gathered, "gathered"), (training, "grouped")])
def test_it_counts_what_the_kernels_do(
    run: Callable[[Case], None],
    op: str,
    popularity: str,
    rows: int,
    dtype: torch.dtype,
    widths: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = case_of(popularity, rows, dtype, widths)
    launches = traffic.count(monkeypatch)
    run(case)
    frame = inspected(case, op, backward=run is training)
    assert frame["kernel"].to_list() == [launch.kernel for launch in launches]
    sides = "ABBABA" if run is training else "AB"
    used = [slot for slot in case.slots.unique().tolist() if slot >= 0]
    for row, launch, side in zip(frame.iter_rows(named=True), launches, sides, strict=True):
        kernel = row["kernel"]
        assert tuple(row["grid"]) == launch.grid, kernel
        assert row["blocks"] == launch.programs, kernel
        assert row["idle_blocks"] == launch.programs - len(launch.working), kernel
        assert row["bytes_read"] == sum(launch.read.values()), kernel
        assert row["bytes_written"] == sum(launch.written.values()), kernel
        assert row["rows"] == int(case.adapted.any(1).sum()), kernel
        assert row["rank_rows"] == int(case.factors.rank[:, used].sum()), kernel
        assert row["flops"] == 2 * products(case, side), kernel
        assert 1 - row["padding"] == pytest.approx(products(case, side) / launch.computed), kernel


DECODE = [LayerShape("gate,up", 576, (1536, 1536))]


def test_a_roofline_by_hand() -> None:
    # Two rows of one adapter of rank 8 on H100: x, A and h once; h, B, and y twice.
    frame = inspect([0, 0], [8], DECODE, op="gathered", gpu="H100")
    read = [2 * 576 * 2 + 16 * 576 * 2, 2 * 16 * 4 + 16 * 1536 * 2 + 2 * 3072 * 2]
    written = [2 * 16 * 4, 2 * 3072 * 2]
    flops = [2 * 2 * 16 * 576, 2 * 2 * 16 * 1536]
    assert frame["bytes_read"].to_list() == read
    assert frame["bytes_written"].to_list() == written
    assert frame["flops"].to_list() == flops
    assert frame["limit"].to_list() == ["bandwidth"] * 2
    moved = [(r + w) / 3350e9 * 1e6 for r, w in zip(read, written, strict=True)]
    assert frame["bound_us"].to_list() == pytest.approx(moved)
    # 576 columns are 3 blocks of 256; 16 rank-rows fill their block.
    assert frame["compute_us"][0] == pytest.approx(2 * 2 * 16 * 768 / 66.9e12 * 1e6)
    assert frame["padding"].to_list() == pytest.approx([1 - 576 / 768, 0.5])


def test_which_limit_holds_depends_on_the_tensor_cores() -> None:
    square = [LayerShape("o", 8192, (8192,))]
    with_them, without = (
        inspect([0] * 8192, [256], square, gpu="L4", dtype=dtype) for dtype in (torch.bfloat16, torch.float32)
    )
    assert with_them["padding"].to_list() == without["padding"].to_list() == [0.0, 0.0]
    assert with_them["compute_us"].to_list() == pytest.approx([2 * 8192**2 * 256 / 121e12 * 1e6] * 2)
    assert without["compute_us"].to_list() == pytest.approx([2 * 8192**2 * 256 / 30.3e12 * 1e6] * 2)
    assert with_them["limit"].to_list() == ["bandwidth", "bandwidth"]
    assert without["limit"].to_list() == ["compute", "bandwidth"]


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [4, 8, 16, 64, 256])
def test_what_a_program_takes_is_in_the_table(rank: int, dtype: torch.dtype, gpu: str) -> None:
    shapes = [LayerShape(str(j), 576, (576,) * j) for j in (1, 2, 3)]
    frames = [inspect([0], [rank], shapes, op="gathered", dtype=dtype, gpu=gpu)]
    frames.append(inspect([0], [rank], shapes, backward=True, dtype=dtype, gpu=gpu))
    frame = pl.concat(frames)
    assert frame["gpu"].unique().to_list() == [gpu]
    assert frame["triton"][0] in read_table()
    assert frame["registers"].null_count() == 0
    assert frame["shared"].max() <= TARGETS[GPUS[gpu].target].shared_limit == frame["shared_limit"][0]
    if dtype == torch.bfloat16:
        uses = frame["instructions"] > 0
        assert uses.to_list() == [not kernel.startswith("gathered") for kernel in frame["kernel"]]


def test_what_is_not_in_the_table_is_null() -> None:
    many = inspect([0], [8], [LayerShape("experts", 576, (64,) * 5)])
    assert many["registers"].null_count() == 2
    assert many["bound_us"].null_count() == 0
    assert inspect([0], [8], DECODE, dtype=torch.float16)["registers"].null_count() == 2


def test_a_batch_without_adapters_launches_nothing() -> None:
    empty, full = inspect([-1, 1], [8, 0], DECODE), inspect([0], [8, 0], DECODE)
    assert empty.height == 0
    assert empty.schema == full.schema


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"gpu": "GB10"}, "The GPU 'GB10' is not known; there are A100, H100"),
        ({"op": "dense"}, "op is 'dense'; there are 'grouped' and 'gathered'"),
        ({"op": "gathered", "backward": True}, "which have no gradient"),
        ({"dtype": torch.float64}, "dtype is torch.float64"),
        ({"slots": [2]}, "must lie in −1 … 0"),
        ({"layers": [LayerShape("q", 64, (64, 64), ((8,),))]}, "q has 2 targets, and the batch 1 slots"),
    ],
)
def test_what_cannot_be_inspected_is_refused(asked: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inspect(**{"slots": [0], "ranks": [8], "layers": DECODE, **asked})
