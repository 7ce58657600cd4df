"""A quick load benchmark over the tiny base: what it gives, and what keeps its rows from being written."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from mintbook import bench
from mintbook.bench import loading
from mintbook.bench.benchmark import Benchmark
from mintbook.errors import MintbookError
from mintbook.serve.load_times import STAGES

KEYS = {
    *("page_cache_per_s", "host_cache_per_s", "last_over_first", "over_peft"),
    *("staircase_16_over_1", "staircase_cold_over_in_slots"),
}


def quick(base: Path, out: Path) -> Benchmark:
    return bench.load(quick=True, base=base, dtype="float32", threads=1, out=out)


@pytest.fixture(scope="module")
def result(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    return quick(tiny_base_folder, tmp_path_factory.mktemp("out"))


def test_every_ratio_is_there_or_says_why_not(result: Benchmark) -> None:
    assert set(result.ratios) | {"cold_per_s"} == KEYS | {"cold_per_s"}
    assert ("cold_per_s" in result.ratios) != ("cold" in result.skipped)
    assert all(value > 0 for value in result.ratios.values())


def test_every_stage_of_a_load_has_its_time(result: Benchmark) -> None:
    rows = result.frame.filter(case="page cache", side="mintbook")
    stages = {metric: value for metric, value in rows.select("metric", "value").iter_rows() if metric in STAGES}
    assert list(stages) == list(STAGES)
    assert stages["fetch"] > 0 and stages["build"] > 0 and stages["activate"] > 0
    host = result.frame.filter(case="host cache", metric="fetch")["value"].item()
    assert host == 0, "what is pinned in memory is not read again"


def test_the_staircase_has_sixteen_stairs_that_rise(result: Benchmark) -> None:
    stairs = result.frame.filter(pl.col("case").str.starts_with("cold, "), metric="first token")["value"].to_list()
    assert len(stairs) == 16 and stairs == sorted(stairs)


def test_a_slot_with_other_numbers_keeps_every_row_from_being_written(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = loading.load_all

    def spoiled(resident, store, revisions):  # type: ignore[no-untyped-def]
        one = honest(resident, store, revisions)
        resident.engine.call(lambda model: model.bank.tensor[int(model.bank.starts[one.slots[0]])].mul_(2))
        return one

    monkeypatch.setattr(loading, "load_all", spoiled)
    with pytest.raises(MintbookError, match=r"Slot \d+ does not hold the numbers of adapter 0. No row was written"):
        quick(tiny_base_folder, tmp_path)
    assert not list(tmp_path.iterdir())
