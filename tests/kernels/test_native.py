"""The compiled op: exact to one rounding, and a row's bits are its own, with every instruction set of this machine."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lora_cases import Case, bits, make_case
from mintbook_kernels import Segments, backend, dispatch, grouped_lora
from mintbook_kernels.grouped_lora.reference import grouped_lora as reference
from mintbook_kernels.native import library, rows
from torch import Tensor

pytestmark = pytest.mark.skipif(not library.available(), reason=f"no compiled op: {library.why_missing()}")

LEVELS = range(library.library().level + 1) if library.available() else ()
DTYPES = (torch.float32, torch.bfloat16)
# Groups of 1 to 40 rows, with the block sizes 2, 4, 8 and 32 and their neighbours between them.
SLOTS = [-1, *[0] * 7, *[1] * 2, *[2] * 40, *[3], *[4] * 5, *[5] * 33, *[7] * 3, -1]
SHAPES = [(70, (45, 20, 33)), (64, (64,)), (96, (31, 160))]


@pytest.fixture(params=LEVELS, ids=lambda level: library.LEVELS[level])
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    loaded = replace(library.library(), level=request.param)
    monkeypatch.setattr(rows, "library", lambda: loaded)
    return request.param


def shuffled(dtype: torch.dtype, width_in: int = 70, widths: tuple[int, ...] = (45, 20, 33)) -> Case:
    slots = torch.tensor(SLOTS)[torch.randperm(len(SLOTS))]
    return make_case(slots, dtype, width_in=width_in, widths=widths)


def doubled(view: Tensor) -> Tensor:
    return torch.empty_strided(view.shape, view.stride(), dtype=torch.float64).copy_(view)


def updated(case: Case, chosen: Tensor | None = None) -> Tensor:
    """Return the update of some rows of a case, as a batch of their own."""
    chosen = torch.arange(len(case.slots)) if chosen is None else chosen
    page_ranks = case.factors.rank.amax(0)
    segments = Segments.of(case.slots[chosen], case.factors.start, page_ranks)
    y = case.y[chosen].clone()
    rows.add_update(y, case.x[chosen], case.factors, segments)
    return y


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width_in", "widths"), SHAPES)
def test_sums_are_in_fp32_and_y_is_rounded_once(
    width_in: int, widths: tuple[int, ...], dtype: torch.dtype, level: int
) -> None:
    case = shuffled(dtype, width_in, widths)
    factors = replace(
        case.factors,
        a=tuple(doubled(a) for a in case.factors.a),
        b=tuple(doubled(b) for b in case.factors.b),
    )
    wanted = reference(case.y.double(), case.x.double(), factors, case.slots)
    off = (updated(case).double() - wanted).abs()
    half_a_unit = torch.finfo(dtype).eps / 2 if dtype == torch.bfloat16 else 0.0
    # bf16's spacing at 1 is 2⁻⁷; the sums before the one rounding are off by some units of fp32.
    assert bool((off <= half_a_unit * wanted.abs() * 1.001 + 1e-4).all())
    assert bool(((wanted - case.y.double()).abs() > 0.01).any())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width_in", "widths"), SHAPES)
def test_a_rows_bits_do_not_depend_on_its_neighbours(
    width_in: int, widths: tuple[int, ...], dtype: torch.dtype, level: int
) -> None:
    case = shuffled(dtype, width_in, widths)
    together = updated(case)
    for row in range(len(case.slots)):
        assert torch.equal(bits(updated(case, torch.tensor([row]))), bits(together[row : row + 1])), row
    some = torch.randperm(len(case.slots))[:50]
    assert torch.equal(bits(updated(case, some)), bits(together[some]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rows_bits_do_not_depend_on_the_threads(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    case, used = shuffled(dtype), []
    parallel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    loaded = library.library()

    @parallel
    def spied(work: int, data: int, threads: int, flags: int) -> None:
        used.append(threads)
        parallel(loaded.parallel)(work, data, threads, flags)

    if loaded.parallel is None:
        pytest.skip("torch runs on an OpenMP runtime without GOMP_parallel")
    spying = replace(loaded, parallel=ctypes.cast(spied, ctypes.c_void_p).value)
    monkeypatch.setattr(rows, "LEAST_NS", 0.0)
    monkeypatch.setattr(rows, "library", lambda: spying)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(updated(case))
    finally:
        torch.set_num_threads(before)
    assert used == [2, 3]
    assert all(torch.equal(bits(one), bits(found[0])) for one in found[1:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_without_an_update_keep_their_bits_and_nan_stays_with_its_adapter(dtype: torch.dtype, level: int) -> None:
    case = shuffled(dtype)
    case.y[~case.adapted] = -0.0
    clean = updated(case)
    assert torch.equal(bits(clean[~case.adapted]), bits(case.y[~case.adapted]))
    first = int(case.factors.start[4])
    case.factors.b[0][first, 3] = float("nan")
    spoilt = updated(case)
    theirs = case.slots == 4
    assert bool(spoilt[theirs][:, 3].isnan().all())
    assert torch.equal(bits(spoilt[~theirs]), bits(clean[~theirs]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_operands_may_lie_in_wider_rows(dtype: torch.dtype, level: int) -> None:
    case = shuffled(dtype)
    wide_x, wide_y = (torch.full((t.shape[0], t.shape[1] + 7), float("nan"), dtype=dtype) for t in (case.x, case.y))
    x, y = wide_x[:, 3:-4], wide_y[:, 2:-5]
    x.copy_(case.x)
    y.copy_(case.y)
    rows.add_update(y, x, case.factors, case.segments)
    assert torch.equal(bits(y), bits(updated(case)))
    assert bool(wide_y[:, :2].isnan().all()) and bool(wide_y[:, -5:].isnan().all())


def test_rank_and_scale_are_read_at_every_call() -> None:
    case = shuffled(torch.float32)
    before = updated(case)
    case.factors.scale.mul_(2)
    assert torch.allclose(updated(case) - case.y, 2 * (before - case.y), atol=1e-4)
    case.factors.rank.zero_()
    assert torch.equal(bits(updated(case)), bits(case.y))


@pytest.mark.parametrize("rank", [100, 700, 9000])
def test_large_ranks_match(rank: int, level: int) -> None:
    slots = torch.tensor([0] * 9)
    case = make_case(slots, torch.float32, width_in=40, widths=(40,), ranks=((rank,),), page_ranks=(rank,))
    wanted = reference(case.y, case.x, case.factors, slots)
    assert torch.allclose(updated(case), wanted, rtol=1e-4, atol=rank**0.5 * 1e-4)


def test_a_rank_that_is_too_large_is_refused() -> None:
    case = make_case(torch.tensor([0]), torch.float32, width_in=1, widths=(1,), ranks=((16385,),), page_ranks=(16385,))
    with pytest.raises(ValueError, match="up to 16384; the largest here is 16385"):
        updated(case)


def test_a_change_of_what_a_backward_needs_is_noticed() -> None:
    case = shuffled(torch.float32)
    leaf = torch.ones(1, requires_grad=True)
    y = case.y * leaf
    product = (y * y).sum()
    grouped_lora(y, case.x, case.factors, case.segments, backend="native")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_a_library_that_does_not_fit_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for said, path, version in (("not compiled", tmp_path / "none.so", 1), ("another version", library.PATH, 0)):
        monkeypatch.setattr(library, "PATH", path)
        monkeypatch.setattr(library, "ABI", version)
        library._load.cache_clear()
        dispatch._on_cpu.cache_clear()
        try:
            assert not library.available() and said in str(library.why_missing())
            assert backend("cpu").name == "torch" and said in backend("cpu").reason
            with pytest.raises(OSError, match=said):
                library.library()
        finally:
            library._load.cache_clear()
            dispatch._on_cpu.cache_clear()
