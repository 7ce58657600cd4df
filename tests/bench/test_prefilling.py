"""A quick prefill benchmark over the tiny base."""

from __future__ import annotations

from pathlib import Path

from mintbook import bench


def test_both_shapes_are_measured_for_every_side(tiny_base_folder: Path, tmp_path: Path) -> None:
    result = bench.prefill(quick=True, base=tiny_base_folder, dtype="float32", threads=1, vllm="off")
    shapes = {"32x32": "32x32x32", "8x128": "8x128x8"}
    assert set(result.ratios) == {
        key
        for rows, case in shapes.items()
        for key in (f"over_base_{case}", f"over_generate_{rows}", f"over_peft_{case}")
    }
    assert all(0 < value < 1000 for value in result.ratios.values())
    assert result.kept_in == ""
    assert not list(tmp_path.iterdir())
