"""Layers that read one tensor are found by running the model, whatever they are called."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mintbook.model.packed_model import PackedModel
from mintbook.model.shared_inputs import shared_inputs
from mintbook.store.page import Site


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.second = nn.Linear(4, 5)
        self.third = nn.Linear(4, 2)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.first(x), self.second(x)], dim=-1)
        return torch.cat([both, self.third(x + 0)], dim=-1)


class Twice(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(x) + self.second(x) + self.first(x).sum()


class Crossed(nn.Module):
    """Two blocks whose layers read one tensor: they have different parents."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Block(), Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.left.first(x) + self.right.first(x)


def groups(model: nn.Module) -> list[list[str]]:
    sites = [Site(n, m.in_features, m.out_features) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    found = shared_inputs(model, sites, lambda: model(torch.zeros(2, 4)))
    return [[sites[index].name for index in group] for group in found]


def test_neighbours_that_read_one_tensor_are_a_group_and_a_copy_is_another_tensor() -> None:
    assert groups(Block()) == [["first", "second"], ["third"], ["unused"]]


def test_a_layer_that_is_called_twice_stays_alone() -> None:
    assert sorted(groups(Twice())) == [["first"], ["second"], ["third"], ["unused"]]


def test_layers_of_different_parents_stay_apart() -> None:
    assert groups(Crossed())[:2] == [["left.first"], ["right.first"]]


def test_a_llama_shares_one_input_for_q_k_v_and_one_for_gate_and_up(tiny_model: PackedModel) -> None:
    names = [[tiny_model.sites[i].name.rsplit(".", 1)[-1] for i in group] for group in tiny_model.bank.groups[:4]]
    assert names == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
