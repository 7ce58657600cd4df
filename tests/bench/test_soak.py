"""The soak in its 30-second form: no answer wrong, none lost, nothing held; and faults that it must see."""

from __future__ import annotations

from pathlib import Path

import pytest
from mintbook_kernels.native import library

from mintbook import bench
from mintbook.bench.soak_drive import Record
from mintbook.bench.soaking import _end_over_half
from mintbook.engine import intake
from mintbook.errors import ConfigError, MintbookError
from mintbook.model.slots import SlotBank
from mintbook.store.page import Page

needs_op = pytest.mark.skipif(not library.available(), reason=f"no compiled op: {library.why_missing()}")


@needs_op
def test_every_answer_is_its_adapters_own(tiny_base_folder: Path) -> None:
    result = bench.soak(quick=True, base=tiny_base_folder, threads=1)
    assert (result.ratios["wrong"], result.ratios["lost"]) == (0, 0)
    assert result.ratios["memory_end_over_half"] < 1.2
    seen = {row.metric: row.value for row in result.rows}
    assert seen["answers"] > 100 and seen["different answers"] > 50
    reached = ("cancelled", "failed", "refused", "evictions", "preemptions", "tokens from kept prefixes")
    assert all(seen[name] > 0 for name in reached)


@needs_op
def test_prefixes_that_are_shared_between_adapters_are_seen(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = intake.prefix_digests
    monkeypatch.setattr(intake, "prefix_digests", lambda key, tokens: honest("all the same", tokens))
    with pytest.raises(MintbookError, match="answered line .* No row was written"):
        bench.soak(quick=True, base=tiny_base_folder, threads=1, seconds=8, out=tmp_path)
    assert not list(tmp_path.iterdir())


@needs_op
def test_a_slot_that_keeps_rows_of_the_one_before_is_seen(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = SlotBank.write

    def stale(bank: SlotBank, slot: int, page: Page) -> None:
        kept = bank.tensor[int(bank.starts[slot])].clone()
        honest(bank, slot, page)
        if bool((kept.abs() < 10).all()):  # what was never written may be anything
            bank.tensor[int(bank.starts[slot])] = kept

    monkeypatch.setattr(SlotBank, "write", stale)
    with pytest.raises(MintbookError, match="answered line .* No row was written"):
        bench.soak(quick=True, base=tiny_base_folder, threads=1, seconds=8, out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_memory_that_grows_is_seen() -> None:
    grows, flat = Record(), Record()
    grows.memory = [(t, 100.0 + t) for t in range(100)]
    flat.memory = [(t, 100.0 + (t % 2)) for t in range(100)]
    assert _end_over_half(grows) > 1.2
    assert _end_over_half(flat) == pytest.approx(1, abs=0.02)


def test_a_soak_of_no_seconds_is_refused() -> None:
    with pytest.raises(ConfigError, match="seconds is 0"):
        bench.soak(seconds=0)
