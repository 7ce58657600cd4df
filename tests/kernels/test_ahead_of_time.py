"""Every kernel compiles for GPUs that are not here: nothing spills, shared memory fits, tensor cores are used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED_LIMIT = {"sm80": 163 * 1024, "sm90": 227 * 1024, "gfx942": 64 * 1024}
Facts = dict[str, dict[str, int]]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    # A process of its own, because here every kernel is interpreted.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    script = Path(__file__).with_name("compile_ahead.py")
    done = subprocess.run([sys.executable, script], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def kernels(compiled: Facts) -> dict[tuple[str, str, str], dict[str, int]]:
    named = {tuple(name.split()): found for name, found in compiled.items() if "control" not in name}
    return {(target, kernel, precision): found for (target, kernel, _, precision), found in named.items()}


def test_nothing_spills_and_shared_memory_fits(compiled: Facts) -> None:
    assert {name: found for name, found in compiled.items() if found["spilled"]}.keys() == {"sm80 control"}
    for name, found in compiled.items():
        fits = found["shared"] <= SHARED_LIMIT[name.split()[0]]
        assert fits != ("control" in name), name


def test_16_bit_products_use_the_tensor_cores(compiled: Facts) -> None:
    for (target, kernel, precision), found in kernels(compiled).items():
        if precision == "bf16":
            assert bool(found["matrix"]) == (not kernel.startswith("gathered")), (target, kernel)
