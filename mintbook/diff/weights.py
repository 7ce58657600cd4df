"""What differs between two adapters in their weights, without ever forming an update ΔW.

With ΔW = s·B A on each side, the stacked factors have the thin QR decompositions ``[B_a, B_b] = P X`` and
``[A_a; A_b]ᵀ = Q Y``. Then ``ΔW_a = P C_a Qᵀ`` with the small core ``C_a = s_a X_a Y_aᵀ``, likewise for b, and the
difference is ``P (C_b − C_a) Qᵀ``. P and Q have orthonormal columns, so that norms, inner products, singular values and
angles of the updates are those of the cores. All in fp64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
from torch import Tensor

from mintbook.errors import ShapeError
from mintbook.store.page import Page, Site

_NUMBERS = (
    *("norm_a", "norm_b", "norm_diff", "spectral_a", "spectral_b", "spectral_diff", "relative", "cosine"),
    *("effective_rank_a", "effective_rank_b", "effective_rank_diff", "largest_angle_out", "largest_angle_in"),
)
_SCHEMA = {"name": pl.String, "layer": pl.Int64, "module": pl.String, **dict.fromkeys(_NUMBERS, pl.Float64)}


@dataclass(frozen=True, slots=True)
class Update:
    """One update ΔW: its singular values, the largest first, those that rounding in fp64 could make left out."""

    singular_values: tuple[float, ...]

    @property
    def norm(self) -> float:
        """Frobenius norm ‖ΔW‖ = √Σσ²."""
        return math.hypot(*self.singular_values)

    @property
    def spectral(self) -> float:
        """Spectral norm, the largest singular value."""
        return max(self.singular_values, default=0.0)

    @property
    def effective_rank(self) -> float:
        """exp(−Σ p ln p) with p = σ / Σσ (Roy & Vetterli 2007): 1 for one direction, n for n equal ones, 0 for none."""
        total = math.fsum(self.singular_values)
        shares = [value / total for value in self.singular_values]
        return math.exp(-math.fsum(p * math.log(p) for p in shares if p)) if shares else 0.0


@dataclass(frozen=True, slots=True)
class ModuleDiff:
    """One adapted layer on both sides: the updates a and b, and ``difference`` = ΔW_b − ΔW_a.

    ``cosine`` is ⟨ΔW_a, ΔW_b⟩ / (‖ΔW_a‖ ‖ΔW_b‖), ``None`` when a side is zero. ``angles_out`` and ``angles_in`` are the
    principal angles in degrees, ascending, between the column spaces (what the updates write to the layer's output) and
    the row spaces (what they read of its input); empty when a side is zero.
    """

    name: str
    layer: int | None
    module: str
    a: Update
    b: Update
    difference: Update
    cosine: float | None
    angles_out: tuple[float, ...]
    angles_in: tuple[float, ...]

    @property
    def relative(self) -> float | None:
        """‖ΔW_b − ΔW_a‖ / ‖ΔW_a‖, or ``None`` when ΔW_a is zero."""
        return self.difference.norm / self.a.norm if self.a.norm else None

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers of the layer as plain data, singular values and angles in full."""
        return {
            **self.row(),
            "singular_values": list(self.difference.singular_values),
            "angles_out": list(self.angles_out),
            "angles_in": list(self.angles_in),
        }

    def row(self) -> dict[str, Any]:
        """Return the layer as one row of a table."""
        sides = {"a": self.a, "b": self.b, "diff": self.difference}
        return {
            "name": self.name,
            "layer": self.layer,
            "module": self.module,
            **{f"norm_{side}": update.norm for side, update in sides.items()},
            **{f"spectral_{side}": update.spectral for side, update in sides.items()},
            "relative": self.relative,
            "cosine": self.cosine,
            **{f"effective_rank_{side}": update.effective_rank for side, update in sides.items()},
            "largest_angle_out": max(self.angles_out, default=None),
            "largest_angle_in": max(self.angles_in, default=None),
        }


@dataclass(frozen=True, slots=True)
class WeightDiff:
    """The layers that either side adapts, and what holds for all of them together as one long vector."""

    modules: tuple[ModuleDiff, ...]

    @property
    def norm_a(self) -> float:
        """√Σ‖ΔW_a‖² over the layers."""
        return math.hypot(*(module.a.norm for module in self.modules))

    @property
    def norm_b(self) -> float:
        """√Σ‖ΔW_b‖² over the layers."""
        return math.hypot(*(module.b.norm for module in self.modules))

    @property
    def norm_diff(self) -> float:
        """√Σ‖ΔW_b − ΔW_a‖² over the layers."""
        return math.hypot(*(module.difference.norm for module in self.modules))

    @property
    def relative(self) -> float | None:
        """‖ΔW_b − ΔW_a‖ / ‖ΔW_a‖ over all layers, or ``None`` when side a changes nothing."""
        return self.norm_diff / self.norm_a if self.norm_a else None

    @property
    def cosine(self) -> float | None:
        """Cosine of the two updates over all layers, or ``None`` when a side is zero."""
        if not self.norm_a or not self.norm_b:
            return None
        inner = math.fsum((m.cosine or 0.0) * m.a.norm * m.b.norm for m in self.modules)
        return inner / (self.norm_a * self.norm_b)

    def to_dict(self) -> dict[str, Any]:
        """Return totals and layers as plain data."""
        totals = {name: getattr(self, name) for name in ("norm_a", "norm_b", "norm_diff", "relative", "cosine")}
        return {**totals, "modules": [module.to_dict() for module in self.modules]}

    def frame(self) -> pl.DataFrame:
        """Return a row per layer; ``layer`` is null for one outside the numbered layers, angles are in degrees."""
        return pl.DataFrame([module.row() for module in self.modules], schema=_SCHEMA)


def weight_diff(a: Page | None, b: Page | None) -> WeightDiff:
    """Compare two pages layer by layer; ``None`` is the plain base, and a layer that one side lacks is zero there.

    Raises `ShapeError` when the two give one layer different shapes.
    """
    left, right = _sides(a), _sides(b)
    for name in left.keys() & right.keys():
        if left[name].site != right[name].site:
            shapes = [(side.site.out_features, side.site.in_features) for side in (left[name], right[name])]
            raise ShapeError(
                f"{name} is {shapes[0]} on one side and {shapes[1]} on the other. Compare adapters of one base."
            )
    return WeightDiff(tuple(_module_diff(name, left.get(name), right.get(name)) for name in {**left, **right}))


def place(name: str) -> tuple[int | None, str]:
    """Return the layer number and the rest of a module's name.

    >>> place("model.layers.3.self_attn.q_proj"), place("lm_head")
    ((3, 'self_attn.q_proj'), (None, 'lm_head'))
    """
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts[:-1]) if part.isdigit()), None)
    return (None, name) if at is None else (int(parts[at]), ".".join(parts[at + 1 :]))


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    site: Site
    down: Tensor
    up: Tensor
    scale: float


def _sides(page: Page | None) -> dict[str, _Side]:
    if page is None:
        return {}
    sides = {}
    for site, scale, factors in zip(page.sites, page.scales, page.factors().values(), strict=True):
        down, up = (factor.detach().cpu().double() for factor in factors)
        sides[site.name] = _Side(site, down, up, scale)
    return sides


def _module_diff(name: str, a: _Side | None, b: _Side | None) -> ModuleDiff:
    present = [side for side in (a, b) if side is not None]
    ups = torch.linalg.qr(torch.cat([side.up for side in present]).T).R
    downs = torch.linalg.qr(torch.cat([side.down for side in present]).T).R
    cores, at = [], 0
    for side in present:
        end = at + len(side.down)
        cores.append(side.scale * ups[:, at:end] @ downs[:, at:end].T)
        at = end
    zero = torch.zeros_like(cores[0])
    core_a, core_b = (cores[0], cores[-1]) if a and b else ((cores[0], zero) if a else (zero, cores[0]))
    # Rounding errs by eps times what is multiplied, and a difference of near-equal updates keeps that error whole.
    sizes = [abs(s.scale) * float(s.up.norm() * s.down.norm()) for s in present]
    noise = max(zero.shape) * torch.finfo(torch.float64).eps
    (left_a, values_a, right_a), (left_b, values_b, right_b) = (
        _svd(core, noise * (sizes[index] if side else 0.0)) for core, side, index in ((core_a, a, 0), (core_b, b, -1))
    )
    _, values, _ = _svd(core_b - core_a, noise * sum(sizes))
    update_a, update_b = Update(values_a), Update(values_b)
    norms = update_a.norm * update_b.norm
    layer, module = place(name)
    return ModuleDiff(
        name=name,
        layer=layer,
        module=module,
        a=update_a,
        b=update_b,
        difference=Update(values),
        cosine=max(-1.0, min(1.0, float((core_a * core_b).sum()) / norms)) if norms else None,
        angles_out=_principal_angles(left_a, left_b),
        angles_in=_principal_angles(right_a, right_b),
    )


def _svd(core: Tensor, noise: float) -> tuple[Tensor, tuple[float, ...], Tensor]:
    """Return left vectors, singular values and right vectors of a core, those with values up to ``noise`` left out."""
    left, values, right = torch.linalg.svd(core, full_matrices=False)
    rank = int((values > noise).sum())
    return left[:, :rank], tuple(values[:rank].tolist()), right[:rank].T


def _principal_angles(left: Tensor, right: Tensor) -> tuple[float, ...]:
    """Return the angles in degrees between two spaces given by orthonormal columns, ascending.

    Cosines tell small angles badly and sines large ones; the angle of both is exact everywhere (Björck & Golub 1973).
    """
    small, large = sorted((left, right), key=lambda basis: basis.shape[1])
    if not small.shape[1]:
        return ()
    within = large.T @ small
    cosines = torch.linalg.svdvals(within)
    sines = torch.linalg.svdvals(small - large @ within).flip(0)
    return tuple(torch.rad2deg(torch.atan2(sines, cosines)).tolist())
