"""Targets: what names match, what is left out, and the way back from sites to names."""

from __future__ import annotations

import pytest

from mintbook.errors import TargetError
from mintbook.model.packed_model import PackedModel
from mintbook.model.sites import choose_sites, target_names
from mintbook.store.page import Site


def ends(model: PackedModel, targets: str | tuple[str, ...]) -> set[str]:
    return {site.name.rsplit(".", 1)[-1] for site in choose_sites(model.sites, targets)}


def test_groups_and_names(tiny_model: PackedModel) -> None:
    attention, mlp = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}
    assert ends(tiny_model, "all-linear") == attention | mlp
    assert ends(tiny_model, "attention") == attention
    assert ends(tiny_model, ("mlp", "q_proj")) == mlp | {"q_proj"}
    assert [s.name for s in choose_sites(tiny_model.sites, "layers.1.mlp.up_proj")] == ["model.layers.1.mlp.up_proj"]
    assert all("lm_head" not in site.name for site in tiny_model.sites)


@pytest.mark.parametrize("target", ["q_prj", "proj", "lm_head", "layers.7.mlp.up_proj", ""])
def test_a_target_that_matches_nothing_is_named(tiny_model: PackedModel, target: str) -> None:
    with pytest.raises(TargetError, match="matches no linear layer"):
        choose_sites(tiny_model.sites, ("q_proj", target))


def test_the_upper_blocks_are_counted_from_the_top() -> None:
    sites = [Site(f"model.layers.{i}.{m}", 4, 4) for i in range(30) for m in ("self_attn.q_proj", "mlp.up_proj")]
    upper = choose_sites(sites, "upper-linear")
    assert sorted({int(site.name.split(".")[2]) for site in upper}) == list(range(12, 30))
    assert target_names(sites, upper) == "upper-linear"
    assert target_names(sites, sites) == "all-linear"


@pytest.mark.parametrize("targets", ["all-linear", ("k_proj", "q_proj"), ("model.layers.0.mlp.up_proj",)])
def test_names_lead_back_to_the_same_sites(tiny_model: PackedModel, targets: str | tuple[str, ...]) -> None:
    chosen = choose_sites(tiny_model.sites, targets)
    assert target_names(tiny_model.sites, chosen) == targets
