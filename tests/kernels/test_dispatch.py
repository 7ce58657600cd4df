"""Which backend is chosen, and that an explicit request is kept or refused."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest
import torch
from mintbook_kernels import BackendError, backend, dispatch


@pytest.fixture(autouse=True)
def chosen_anew() -> Iterator[None]:
    dispatch._on_cpu.cache_clear()
    yield
    dispatch._on_cpu.cache_clear()


@pytest.fixture
def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_why_no_triton", lambda: "triton cannot be imported (No module named 'triton')")
    dispatch._warn_once.cache_clear()


def test_the_automatic_choice_follows_the_device() -> None:
    assert backend("cpu").name in ("native", "torch")
    assert backend("cuda:0").name == "triton"
    assert "mps" in backend("mps").reason


def test_the_interpreter_is_never_chosen_by_itself() -> None:
    assert backend("cpu").name != "triton"
    assert "interprets" in backend("cpu", "triton").reason


def test_triton_for_cpu_tensors_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(BackendError, match=r"tensors on cpu.*TRITON_INTERPRET=1"):
        backend("cpu", "triton")


def test_a_name_that_does_not_exist_is_refused() -> None:
    with pytest.raises(BackendError, match="'cudnn'; there are 'triton', 'native', 'torch'"):
        backend("cpu", "cudnn")


def test_the_environment_names_one_and_the_caller_goes_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINTBOOK_KERNELS", "torch")
    assert backend("cuda").name == "torch" and "MINTBOOK_KERNELS=torch" in backend("cuda").reason
    assert backend("cuda", "triton").name == "triton"
    monkeypatch.setenv("MINTBOOK_KERNELS", "fastest")
    with pytest.raises(BackendError, match="MINTBOOK_KERNELS=fastest asks"):
        backend("cpu")


@pytest.mark.usefixtures("without_triton")
def test_a_gpu_without_triton_is_served_and_warned_about_once() -> None:
    with pytest.warns(RuntimeWarning, match="No module named 'triton'"):
        assert backend("cuda").name == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "plain torch on cuda" in backend("cuda").reason


@pytest.mark.usefixtures("without_triton")
def test_triton_that_is_missing_is_refused() -> None:
    with pytest.raises(BackendError, match="Install triton"):
        backend("cuda", "triton")


def test_the_compiled_op_is_taken_on_a_cpu_where_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch.library, "why_missing", lambda: None)
    monkeypatch.setattr(dispatch.library, "features", lambda: "AVX2")
    assert backend("cpu") == dispatch.Backend("native", "compiled op, AVX2")
    assert backend("cpu", "native").name == "native"
    assert backend("cpu", dtype=torch.float64).name == "torch"
    assert "not torch.float64" in backend("cpu", dtype=torch.float64).reason
    with pytest.raises(BackendError, match="'native', but the compiled op takes .* not torch.float16"):
        backend("cpu", "native", torch.float16)
    with pytest.raises(BackendError, match="is for CPUs, not cuda"):
        backend("cuda", "native")


def test_where_the_compiled_op_is_missing_the_reason_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch.library, "why_missing", lambda: "no C compiler")
    assert backend("cpu") == dispatch.Backend("torch", "plain torch: the compiled op is missing (no C compiler)")
    with pytest.raises(BackendError, match=r"the compiled op is missing \(no C compiler\). Ask for 'torch'"):
        backend("cpu", "native")


def test_importing_the_package_loads_no_triton() -> None:
    said = "import sys, mintbook_kernels; print('triton' in sys.modules, 'mintbook' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
