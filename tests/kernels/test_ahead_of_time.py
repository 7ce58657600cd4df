"""Every kernel compiles for GPUs that are not here: nothing spills, shared memory fits, tensor cores are used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mintbook_kernels.gpus import TARGETS
from mintbook_kernels.resources import Program, Resources, Table, read_table, write_table

INSTRUCTIONS = {"sm_80": {"HMMA"}, "sm_89": {"HMMA"}, "sm_90": {"HMMA", "HGMMA"}, "gfx942": {"MFMA"}}
Rows = dict[Program, Resources]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    # A process of its own, because here every kernel is interpreted.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    script = Path(__file__).with_name("compile_ahead.py")
    done = subprocess.run([sys.executable, script], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def compiled(output: dict[str, Any]) -> Rows:
    return {Program(**program): Resources(**found) for program, found in output["compiled"]}


def faults(rows: Rows) -> list[str]:
    return [f"{program}: {fault}" for program, found in rows.items() for fault in faults_of(program, found)]


def faults_of(program: Program, found: Resources) -> list[str]:
    out = []
    if found.spilled:
        out.append(f"spills {found.spilled} bytes")
    if found.shared > TARGETS[program.target].shared_limit:
        out.append(f"asks for {found.shared} bytes of shared memory")
    if program.kernel.startswith("gathered"):
        wanted = {""}
    elif program.precision == "fp32":
        wanted = {"", "MFMA"} if program.target == "gfx942" else {""}
    else:
        wanted = INSTRUCTIONS[program.target]
    if found.instruction not in wanted or (found.instructions == 0) != (found.instruction == ""):
        out.append(f"has {found.instructions} {found.instruction!r}")
    return out


def test_what_is_compiled_now_spills_nothing_fits_and_uses_the_tensor_cores(compiled: Rows) -> None:
    assert {program.target for program in compiled} == {"sm_80", "sm_90", "gfx942"}
    assert not faults(compiled)
    wide = [
        found for program, found in compiled.items() if program.target == "sm_90" and "BLOCK_R=64" in program.constants
    ]
    assert "HGMMA" in {found.instruction for found in wide}


def test_a_tile_that_is_too_large_is_reported(output: dict[str, Any]) -> None:
    control = Resources(**output["control"])
    assert control.instruction == "HMMA"
    program = Program("sm_80", "shrink_kernel", "bf16", "", 4)
    assert [fault.split()[0] for fault in faults_of(program, control)] == ["spills", "asks"]
    assert faults_of(program, Resources(40, 0, 1024, "", 0)) == ["has 0 ''"]


def test_the_committed_table_is_what_is_compiled_now(output: dict[str, Any], compiled: Rows) -> None:
    table, version = read_table(), output["triton"]
    if version not in table:
        pytest.skip(f"resources.csv has Triton {', '.join(table)}, and {version} is installed")
    assert {program: table[version][program] for program in compiled} == compiled


def test_the_committed_table_has_every_program_and_no_fault(output: dict[str, Any]) -> None:
    table = read_table()
    assert "3.7.1" in table
    for version, rows in table.items():
        assert rows.keys() == {Program(*program) for program in output["all"]}, version
        assert not faults(rows), version


def test_the_table_is_written_as_it_is_read(tmp_path: Path) -> None:
    table: Table = read_table()
    write_table(table, tmp_path / "again.csv")
    assert read_table(tmp_path / "again.csv") == table
