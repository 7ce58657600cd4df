"""Where the kernels are tested: plain torch everywhere, and the Triton source on a GPU or in Triton's interpreter."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from lora_cases import DEVICE
from mended_interpreter import interpret


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, let the kernels be interpreted."""
    monkeypatch.delenv("MINTBOOK_KERNELS", raising=False)
    if DEVICE == "cpu":
        interpret(monkeypatch)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
