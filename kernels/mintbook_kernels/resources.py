"""What every Triton kernel takes of a GPU, as compiled ahead of time: the table in resources.csv.

The table is made by ``python -m mintbook_kernels.ahead_of_time`` and checked by the tests; reading it needs no Triton.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

PATH = Path(__file__).with_name("resources.csv")


@dataclass(frozen=True, slots=True, order=True)
class Program:
    """One way in which a kernel is compiled."""

    target: str
    """A key of `gpus.TARGETS`."""
    kernel: str
    precision: str
    """Of the factors: bf16, fp16 or fp32."""
    constants: str
    """The kernel's compile-time arguments, as `spell` writes them."""
    warps: int


@dataclass(frozen=True, slots=True)
class Resources:
    """What one program takes."""

    registers: int
    """For each thread."""
    spilled: int
    """Bytes of local memory for each thread; 0 where everything fits into registers."""
    shared: int
    """Bytes for each block."""
    instruction: str
    """The tensor cores' instruction: HMMA, HGMMA or MFMA; empty where the kernel has none."""
    instructions: int
    """How often it stands in the code."""


def spell(constants: dict[str, object]) -> str:
    """Write compile-time arguments in one order.

    >>> spell({"BLOCK_R": 16, "BLOCK_K": 64, "SCALED": True})
    'BLOCK_K=64 BLOCK_R=16 SCALED=1'
    """
    numbers = {name: int(value) if isinstance(value, bool) else value for name, value in constants.items()}
    return " ".join(f"{name}={numbers[name]}" for name in sorted(numbers))


Table = dict[str, dict[Program, Resources]]
"""By Triton's version, then by program."""


def read_table(path: Path = PATH) -> Table:
    """Read the table."""
    table: Table = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            program = Program(row["target"], row["kernel"], row["precision"], row["constants"], int(row["warps"]))
            numbers = {name: int(row[name]) for name in ("registers", "spilled", "shared", "instructions")}
            table.setdefault(row["triton"], {})[program] = Resources(instruction=row["instruction"], **numbers)
    return table


def write_table(table: Table, path: Path = PATH) -> None:
    """Write the table, sorted."""
    names = ["triton", *(field.name for kind in (Program, Resources) for field in fields(kind))]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for version in sorted(table):
            for program in sorted(table[version]):
                writer.writerow({"triton": version, **asdict(program), **asdict(table[version][program])})


def merged(table: Table, version: str, rows: Iterable[tuple[Program, Resources]]) -> Table:
    """Return the table with the rows of one version replaced."""
    return {**table, version: dict(rows)}
