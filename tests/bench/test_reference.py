"""The reference: it knows a right answer from a wrong one, and notices when it could not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mintbook.bench.adapters import random_page
from mintbook.bench.reference import Claim, Reference
from mintbook.errors import MintbookError
from mintbook.model.packed_model import PackedModel

PROMPT = tuple(range(10, 30))


@pytest.fixture
def reference(tiny_base_folder: Path, tiny_model: PackedModel) -> Reference:
    pages = [random_page(tiny_model.sites, 8, seed=seed, dtype=torch.float32) for seed in range(2)]
    pages.append(pages[0].like(torch.zeros_like(pages[0].tensor)))
    return Reference(tiny_base_folder, pages, "float32")


def greedy(reference: Reference, adapter: int | None) -> tuple[int, ...]:
    said: tuple[int, ...] = ()
    for _ in range(4):
        said += (min(range(260), key=lambda token: reference.gap(Claim("", PROMPT, (*said, token), adapter), adapter)),)
    return said


def quiet(_what: str) -> None:
    return None


def test_the_greedy_answers_of_base_and_adapter_pass(reference: Reference) -> None:
    claims = [Claim("side", PROMPT, greedy(reference, adapter), adapter) for adapter in (None, 0, 1)]
    assert reference.check(claims, quiet) == 0.0
    assert len({claim.tokens for claim in claims}) == 3


def test_another_adapters_answer_is_refused(reference: Reference) -> None:
    claim = Claim("some side", PROMPT, greedy(reference, 0), 1)
    with pytest.raises(MintbookError, match="some side: a row of adapter 1 said"):
        reference.check([claim], quiet)


def test_an_adapter_that_changes_nothing_makes_the_check_blind(reference: Reference) -> None:
    with pytest.raises(MintbookError, match="the check is blind"):
        reference.check([Claim("side", PROMPT, greedy(reference, None), 2)], quiet)


def test_not_a_number_is_wrong(reference: Reference) -> None:
    reference.pages[1].tensor.fill_(float("nan"))  # type: ignore[index]
    with pytest.raises(MintbookError, match="nan nats below"):
        reference.check([Claim("side", PROMPT, (5, 6), 1)], quiet)
