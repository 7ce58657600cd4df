"""A quick handoff benchmark over the tiny base: numbers that stand apart, and answers that are the adapter's."""

from __future__ import annotations

from pathlib import Path

import pytest

from mintbook import bench
from mintbook.bench import handover
from mintbook.bench.benchmark import Benchmark
from mintbook.errors import MintbookError
from mintbook.serve.residency import Residency

KEYS = {
    *("merged_bytes_over_adapter", "merged_ready_s_over_slot", "merged_ready_s_over_store"),
    *("merged_first_s_over_slot", "merged_per_s_over_slot"),
}


def quick(base: Path, out: Path | None = None) -> Benchmark:
    return bench.handoff(quick=True, base=base, dtype="float32", threads=1, out=out)


@pytest.fixture(scope="module")
def result(tiny_base_folder: Path) -> Benchmark:
    return quick(tiny_base_folder)


def value(result: Benchmark, side: str, metric: str) -> float:
    return float(result.frame.filter(case="handoff", side=side, metric=metric)["value"].item())


def test_every_number_stands_apart(result: Benchmark) -> None:
    assert set(result.ratios) | {"break_even_tokens"} == KEYS | {"break_even_tokens"}
    assert ("break_even_tokens" in result.ratios) != ("break-even" in result.skipped)
    for side in (handover.SLOT, handover.STORE, handover.MERGED):
        assert all(value(result, side, metric) > 0 for metric in ("until it can answer", "first sample", "speed"))


def test_the_slot_moves_nothing_and_the_merged_model_everything(result: Benchmark) -> None:
    moved = [value(result, side, "moved") for side in (handover.SLOT, handover.STORE, handover.MERGED)]
    assert moved[0] == 0 < moved[1] < moved[2]
    steps = sum(value(result, handover.MERGED, step) for step in ("merge", "save", "load"))
    assert value(result, handover.MERGED, "until it can answer") == pytest.approx(steps, rel=0.9)


def test_a_handoff_that_copies_is_no_handoff(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Residency, "adopt", lambda self, revision, slot: self.discard(slot))
    with pytest.raises(MintbookError, match="was copied on its way"):
        quick(tiny_base_folder, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_merge_with_the_wrong_scale_keeps_every_row_from_being_written(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = handover.merge
    monkeypatch.setattr(handover, "merge", lambda model, page: honest(honest(model, page), page))
    with pytest.raises(MintbookError, match=r"merged and reloaded: a row .* No row was written"):
        quick(tiny_base_folder, tmp_path)
    assert not list(tmp_path.iterdir())
