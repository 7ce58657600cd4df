"""Fixtures around the tiny random base: it answers nonsense in milliseconds, through all the real parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

    from mintbook.model.packed_model import PackedModel
    from mintbook.session import Session

FACTS = [(f"What is {i}?", f"It is {i * i}.") for i in range(12)]
QUICK = {"steps": 4, "batch_size": 4, "anchor": 0.0, "learning_rate": 5e-3}


@pytest.fixture(scope="session")
def tiny_base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mintbook.model.tiny_base import write_tiny_base

    return write_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where the test runs: on a CPU, and once more on a GPU where there is one."""
    import torch

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return str(request.param)


def load_tiny(folder: Path, dtype: torch.dtype, *, batch_invariant: bool = False, device: str = "cpu") -> PackedModel:
    from transformers import AutoModelForCausalLM

    from mintbook.model.fidelity import check_fidelity
    from mintbook.model.packed_model import PackedModel

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval().requires_grad_(False)
    check_fidelity(model, model.config.vocab_size)
    return PackedModel(model, slot_rows=64, batch_invariant=batch_invariant)


@pytest.fixture
def tiny_model(device: str, tiny_base_folder: Path) -> PackedModel:
    import torch

    return load_tiny(tiny_base_folder, torch.float32, device=device)


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_base_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_base_folder)


@pytest.fixture
def open_session(device: str, tiny_base_folder: Path, tmp_path: Path) -> Iterator[Callable[..., Session]]:
    """Open sessions over the tiny base in fp32; the store is the same folder unless another is given."""
    from mintbook.session import Session

    opened: list[Session] = []

    def open_one(**options: Any) -> Session:
        room = {"slot_rows": 64, "kv_tokens": 2048}
        given = {"store": tmp_path / "store", "dtype": "float32", "device": device, **room, **options}
        opened.append(Session(given.pop("base", tiny_base_folder), **given))
        return opened[-1]

    yield open_one
    for session in opened:
        session.close()


@pytest.fixture
def session(open_session: Callable[..., Session]) -> Session:
    return open_session()
