from __future__ import annotations

import math

import polars as pl
import pytest
import torch
from torch import Tensor

from mintbook.diff.weights import ModuleDiff, Update, weight_diff
from mintbook.errors import ShapeError
from mintbook.store.page import Page, Site

SITES = (
    Site("model.layers.0.self_attn.q_proj", 24, 20),
    Site("model.layers.0.mlp.down_proj", 40, 24),
    Site("model.layers.11.self_attn.q_proj", 24, 20),
    Site("extra", 6, 5),
)
TOLERANCE = 1e-10


def page(*ranks: int, seed: int = 0, sites: tuple[Site, ...] = SITES, scale: float = 2.0) -> Page:
    """A random fp64 page; rank-rows below a site's own rank are zero."""
    generator = torch.Generator().manual_seed(seed)
    ranks = ranks if len(ranks) == len(sites) else ranks * len(sites)
    tensor = torch.zeros(max(ranks), sum(site.width for site in sites), dtype=torch.float64)
    made = Page(tensor, sites, ranks, tuple(scale / (i + 1) for i in range(len(sites))))
    for a, b in made.factors().values():
        a.copy_(torch.randn(a.shape, generator=generator, dtype=torch.float64))
        b.copy_(torch.randn(b.shape, generator=generator, dtype=torch.float64))
    return made


def update(of: Page | None, name: str, like: Page) -> Tensor:
    """ΔW [O, H] of one module, materialised."""
    for held in (of, like):
        for site, scale in zip(held.sites, held.scales, strict=True) if held else ():
            if site.name == name:
                a, b = held.factors()[name]  # type: ignore[union-attr]
                return (scale if held is of else 0.0) * b.T.double() @ a.double()
    raise AssertionError(name)


def near(found: float | None, expected: Tensor | float) -> None:
    assert found == pytest.approx(float(expected), rel=TOLERANCE, abs=TOLERANCE)


def bases(delta: Tensor) -> tuple[Tensor, Tensor]:
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    rank = int((values > 1e-12 * values[0]).sum()) if values[0] else 0
    return left[:, :rank], right[:rank].T


def angles(left: Tensor, right: Tensor) -> list[float]:
    return [math.degrees(math.acos(min(1.0, c))) for c in torch.linalg.svdvals(left.T @ right).tolist()]


def check(module: ModuleDiff, delta_a: Tensor, delta_b: Tensor) -> None:
    difference = delta_b - delta_a
    for found, delta in ((module.a, delta_a), (module.b, delta_b), (module.difference, difference)):
        values = torch.linalg.svdvals(delta)
        near(found.norm, torch.linalg.matrix_norm(delta))
        near(found.spectral, values[0])
        kept = torch.tensor(found.singular_values, dtype=torch.float64)
        torch.testing.assert_close(kept, values[: len(kept)], rtol=TOLERANCE, atol=TOLERANCE)
        assert not len(values[len(kept) :]) or values[len(kept) :].max() < TOLERANCE
        shares = values[values > 1e-12] / values.sum()
        near(found.effective_rank, torch.exp(-(shares * shares.log()).sum()) if len(shares) else 0.0)
    norms = delta_a.norm() * delta_b.norm()
    if norms:
        near(module.cosine, (delta_a * delta_b).sum() / norms)
        (out_a, in_a), (out_b, in_b) = bases(delta_a), bases(delta_b)
        assert module.angles_out == pytest.approx(angles(out_a, out_b), abs=1e-5)
        assert module.angles_in == pytest.approx(angles(in_a, in_b), abs=1e-5)
    else:
        assert module.cosine is None
        assert module.angles_out == module.angles_in == ()


FEWER = page(3, seed=4, sites=SITES[1:3])
ZERO = page(4, seed=5)
for _, zeroed in ZERO.factors().values():
    zeroed.zero_()


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (page(4), page(4, seed=1)),
        (page(1), page(16, seed=1)),
        (page(2, 16, 5, 1), page(9, 1, 16, 5, seed=2, scale=0.01)),
        (page(16), page(16, seed=3)),  # more rank-rows on both sides than the layer "extra" has inputs
        (page(4), FEWER),
        (FEWER, page(4)),
        (page(4), None),
        (None, page(4)),
        (ZERO, page(4)),
        (ZERO, None),
        (page(4, seed=6, scale=-3.0), page(4)),
    ],
)
def test_everything_is_as_in_the_materialised_updates(a: Page | None, b: Page | None) -> None:
    found = weight_diff(a, b)
    names = list(dict.fromkeys(site.name for side in (a, b) if side for site in side.sites))
    assert [module.name for module in found.modules] == names
    squares = 0.0
    for module in found.modules:
        deltas = [update(side, module.name, other) for side, other in ((a, b), (b, a))]  # type: ignore[arg-type]
        check(module, *deltas)
        squares += float((deltas[1] - deltas[0]).square().sum())
    near(found.norm_diff, math.sqrt(squares))


def test_totals_are_those_of_one_long_vector() -> None:
    a, b = page(4), page(6, seed=1)
    long = [torch.cat([update(side, site.name, side).flatten() for site in SITES]) for side in (a, b)]
    found = weight_diff(a, b)
    near(found.norm_a, long[0].norm())
    near(found.norm_b, long[1].norm())
    near(found.cosine, torch.cosine_similarity(long[0], long[1], dim=0))
    near(found.relative, (long[1] - long[0]).norm() / long[0].norm())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_an_adapter_does_not_differ_from_itself(dtype: torch.dtype) -> None:
    held = page(7)
    held = held.like(held.tensor.to(dtype))
    found = weight_diff(held, held)
    assert found.norm_diff == 0
    assert found.cosine == pytest.approx(1, abs=1e-14)
    for module in found.modules:
        assert module.difference == Update(())
        assert module.difference.effective_rank == 0
        assert max(*module.angles_out, *module.angles_in) < 1e-6


def test_other_factors_of_the_same_update_do_not_differ() -> None:
    held = page(4, scale=1.0)
    turned = held.like(held.tensor.clone())
    generator = torch.Generator().manual_seed(9)
    for a, b in turned.factors().values():
        q = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=generator)).Q
        a.copy_(q.T @ a)
        b.copy_(q.T @ b)
    assert (turned.tensor - held.tensor).abs().max() > 0.1
    assert weight_diff(held, turned).norm_diff < 1e-13 * weight_diff(held, turned).norm_a
    scaled = Page(held.tensor * 0.5, held.sites, held.ranks, tuple(4 * scale for scale in held.scales))
    assert weight_diff(held, scaled).norm_diff == 0


def test_a_small_difference_is_not_taken_for_rounding() -> None:
    held = page(8)
    moved = held.like(held.tensor.clone())
    moved.tensor[0, 0] += 1e-9
    (module, *_) = weight_diff(held, moved).modules
    expected = 2.0 * 1e-9 * held.factors()[SITES[0].name][1][0].norm()
    assert module.difference.norm == pytest.approx(float(expected), rel=1e-4)
    assert module.difference.effective_rank == pytest.approx(1, abs=1e-3)


def test_swapped_sides_mirror_each_other() -> None:
    there, back = weight_diff(page(4), page(16, seed=1)), weight_diff(page(16, seed=1), page(4))
    assert there.norm_a == pytest.approx(back.norm_b)
    assert there.norm_diff == pytest.approx(back.norm_diff)
    for one, other in zip(there.modules, back.modules, strict=True):
        assert one.difference.singular_values == pytest.approx(other.difference.singular_values)
        assert one.angles_out == pytest.approx(other.angles_out)
        assert one.cosine == pytest.approx(other.cosine)


def test_one_direction_against_a_space_that_holds_it_has_no_angle() -> None:
    wide = page(5)
    narrow = Page(wide.tensor[:1].clone(), SITES, (1,) * 4, wide.scales)
    # Rank 5 fills the outputs of "extra"; the others have room for an angle and must have none.
    for module in weight_diff(narrow, wide).modules[:3]:
        b, a = wide.factors()[module.name][1], wide.factors()[module.name][0]
        assert len(module.angles_out) == len(module.angles_in) == 1
        assert a.shape[0] == b.shape[0] == 5
        assert module.angles_out[0] < 1e-12
        assert module.angles_in[0] < 1e-12


def test_effective_rank_counts_directions() -> None:
    assert Update((3.0, 3.0, 3.0)).effective_rank == pytest.approx(3)
    assert Update((5.0,)).effective_rank == pytest.approx(1)
    assert 1 < Update((5.0, 0.5)).effective_rank < 2
    assert Update(()).effective_rank == 0


def test_the_frame_has_layers_and_modules() -> None:
    frame = weight_diff(page(4), FEWER).frame()
    assert frame["layer"].to_list() == [0, 0, 11, None]
    assert frame["module"].to_list() == ["self_attn.q_proj", "mlp.down_proj", "self_attn.q_proj", "extra"]
    assert frame["cosine"].null_count() == 2
    assert frame["norm_diff"].dtype == pl.Float64
    alone = weight_diff(None, page(4)).frame()
    assert alone["relative"].null_count() == 4
    assert alone.schema == frame.schema == weight_diff(None, None).frame().schema


def test_plain_data_is_json() -> None:
    import json

    data = weight_diff(None, page(2, seed=3)).to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert len(data["modules"][0]["singular_values"]) == 2


def test_layers_of_different_shapes_are_refused() -> None:
    other = page(2, sites=(Site(SITES[0].name, 24, 21),))
    with pytest.raises(ShapeError, match=r"\(20, 24\) on one side and \(21, 24\) on the other"):
        weight_diff(page(2), other)
