"""Starts: nothing changes at step 0, rows are orthonormal, and a seed is a start."""

from __future__ import annotations

import math

import pytest
import torch

from mintbook.config import LoraConfig
from mintbook.errors import ShapeError
from mintbook.model.inits import initial_page
from mintbook.model.packed_model import PackedModel


def test_orthonormal_rows_and_zero_b(tiny_model: PackedModel) -> None:
    page = initial_page(tiny_model.sites, LoraConfig(rank=8, seed=3))
    for a, b in page.factors().values():
        torch.testing.assert_close(a @ a.T, torch.eye(8), rtol=0, atol=1e-5)
        assert not b.any()
    again, other = (initial_page(tiny_model.sites, LoraConfig(rank=8, seed=seed)).tensor for seed in (3, 4))
    assert torch.equal(page.tensor, again)
    assert not torch.equal(page.tensor, other)


def test_the_peft_start_has_pefts_distribution(tiny_model: PackedModel) -> None:
    page = initial_page(tiny_model.sites, LoraConfig(rank=16, init="peft"))
    for site, (a, b) in zip(page.sites, page.factors().values(), strict=True):
        bound = 1 / math.sqrt(site.in_features)
        assert 0.9 * bound < a.abs().max() <= bound
        assert a.std() == pytest.approx(bound / math.sqrt(3), rel=0.15)
        assert not b.any()


def test_more_orthonormal_rows_than_inputs_do_not_exist(tiny_model: PackedModel) -> None:
    with pytest.raises(ShapeError, match="init='peft'"):
        initial_page(tiny_model.sites, LoraConfig(rank=65))
    assert initial_page(tiny_model.sites, LoraConfig(rank=65, init="peft")).rank == 65
