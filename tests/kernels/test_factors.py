"""What factors must look like."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mintbook_kernels import Factors


def factors(**changed: Any) -> Factors:
    bank = torch.zeros(6, 20)
    fields = {
        "a": bank[:, :8],
        "b": bank[:, 8:],
        "start": torch.zeros(2),
        "rank": torch.zeros(2),
        "scale": torch.ones(2),
    }
    return Factors(**(fields | changed))


def test_views_of_one_bank_are_taken() -> None:
    assert factors().slots == 2


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"b": torch.zeros(5, 12)}, "same N rank-rows"),
        ({"a": torch.zeros(6)}, "same N rank-rows"),
        ({"a": torch.zeros(6, 8, dtype=torch.bfloat16)}, "one precision"),
        ({"a": torch.zeros(8, 6).T}, "side by side"),
        ({"rank": torch.zeros(3)}, r"\[2\], \[3\] and \[2\]"),
    ],
)
def test_others_are_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        factors(**changed)
