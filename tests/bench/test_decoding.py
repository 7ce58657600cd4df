"""A quick decode benchmark over the tiny base: what it gives, what it keeps, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest

from mintbook import bench
from mintbook.bench import adapters, decoding
from mintbook.bench.benchmark import Benchmark
from mintbook.bench.results import COLUMNS
from mintbook.engine.engine import Engine
from mintbook.errors import MintbookError
from mintbook.store.page import Page

KEYS = {
    *("over_base_32x32", "over_base_32x8", "over_base_8x8", "over_base_1x1"),
    *("over_generate_1", "over_generate_8", "over_generate_32", "over_peft_32x32"),
    *("over_merged_32x32", "over_merged_32x8", "over_merged_8x8"),
}


def quick(base: Path, out: Path) -> Benchmark:
    return bench.decode(quick=True, base=base, dtype="float32", threads=1, vllm="off", out=out)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def result(tiny_base_folder: Path, out: Path) -> Benchmark:
    return quick(tiny_base_folder, out)


def test_every_ratio_is_there_and_is_a_ratio(result: Benchmark) -> None:
    assert set(result.ratios) == KEYS
    assert all(0 < value < 1000 for value in result.ratios.values())


def test_a_ratio_is_that_of_the_rows_within_rounding_of_medians(result: Benchmark) -> None:
    wall = {(r.case, r.side): r.value for r in result.rows if r.metric == "wall"}
    merged = 32 * wall["1 base", "mintbook"]
    assert wall["32x32", "merged"] == pytest.approx(merged)
    over = result.frame.filter(case="32x32", side="mintbook", metric="wall over base")["value"].item()
    assert result.ratios["over_base_32x32"] == pytest.approx(over, abs=1e-3)


def test_the_rows_are_kept_with_machine_and_commit(result: Benchmark, out: Path) -> None:
    kept = pl.read_csv(out / "decode.csv")
    assert tuple(kept.columns) == COLUMNS and len(kept) == len(result.rows) == len(result.frame)
    assert set(kept["side"]) == {"mintbook", "transformers", "peft", "merged", "every"}
    (held,) = kept.filter(metric="answers checked")["value"]
    assert held >= 20
    assert "threads" in kept["machine"][0] and "LoRA kernels: " in kept["machine"][0]
    assert "torch" in kept["versions"][0] and kept["date"][0].startswith("20")
    assert result.kept_in == str(out / "decode.csv")


def test_it_shows_itself(result: Benchmark) -> None:
    text = result.card().text(120)
    assert "over_base_32x32" in text and "≤ 1.35 (1.25)" in text and "it was switched off" in text
    assert "<table" in result.card().html()
    names = [trace.name for trace in result.figure().data]
    assert names[:2] == ["ratio", "target"] and "peft" in names


def test_an_adapter_in_the_wrong_slot_keeps_every_row_from_being_written(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def turned(engine: Engine, pages: Sequence[Page]) -> Iterator[list[int]]:
        with adapters.in_slots(engine, pages) as slots:
            yield slots[1:] + slots[:1]

    monkeypatch.setattr(decoding, "in_slots", turned)
    with pytest.raises(MintbookError, match=r"mintbook, 1x1: a row of adapter 0 said .* No row was written"):
        quick(tiny_base_folder, tmp_path)
    assert not list(tmp_path.iterdir())
