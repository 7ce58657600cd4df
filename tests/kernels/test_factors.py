"""What factors must look like."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mintbook_kernels import Factors


def factors(**changed: Any) -> Factors:
    bank = torch.zeros(6, 40)
    fields = {
        "a": (bank[:, :8], bank[:, 20:28]),
        "b": (bank[:, 8:20], bank[:, 28:33]),
        "start": torch.zeros(2, dtype=torch.int64),
        "rank": torch.zeros(2, 2, dtype=torch.int32),
        "scale": torch.ones(2, 2),
    }
    return Factors(**(fields | changed))


def test_views_of_one_bank_are_taken() -> None:
    found = factors()
    assert (found.slots, found.targets, found.in_features) == (2, 2, 8)
    assert found.out_features == (12, 5) and found.columns == (0, 12, 17)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"a": ()}, "0 and 2"),
        ({"b": (torch.zeros(6, 40),)}, "2 and 1"),
        ({"b": (torch.zeros(5, 40), torch.zeros(5, 40))}, "same N rank-rows"),
        ({"a": (torch.zeros(6), torch.zeros(6))}, "same N rank-rows"),
        ({"a": (torch.zeros(6, 40)[:, :8], torch.zeros(6, 40)[:, :7])}, "one H"),
        ({"a": (torch.zeros(6, 40, dtype=torch.bfloat16),) * 2}, "one precision"),
        ({"a": (torch.zeros(8, 6).T,) * 2}, "side by side"),
        ({"a": (torch.zeros(6, 8),) * 2}, "one bank"),
        ({"rank": torch.zeros(2, dtype=torch.int32)}, r"rank must be \[2, 2\] torch.int32.*\[2\]"),
        ({"rank": torch.zeros(2, 2)}, "rank must be .* torch.int32"),
        ({"rank": torch.zeros(2, 4, dtype=torch.int32)[:, ::2]}, "without gaps"),
        ({"scale": torch.ones(2, 3)}, "scale must be"),
        ({"start": torch.zeros(2, dtype=torch.int32)}, "start must be"),
    ],
)
def test_others_are_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        factors(**changed)
