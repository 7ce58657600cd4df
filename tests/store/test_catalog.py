from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import mintbook.errors
from mintbook.store.catalog import COLUMNS, scan_catalog
from mintbook.store.predicate import sql_of
from mintbook.store.store import Store

MANY = 20_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A store with many records, half of them without a revision."""
    names = random.Random(0).sample(range(10 * MANY), MANY)
    with Store.open(tmp_path_factory.mktemp("large")) as store:
        with store._database.transaction() as connection:
            connection.executemany(
                "INSERT INTO record "
                "(id, name, base_digest, base_name, rank, alpha, alpha_rule, targets, lora, created) "
                "VALUES (?, ?, 'b', ?, ?, ?, 'ratio', 'mlp', '{}', '2026-01-01T00:00:00.000000+00:00')",
                [
                    (n, f"user-{name:06}", "tiny" if n % 3 else "large", 4 if n % 2 else 8 if n > 10 else 256, n / 4)
                    for n, name in enumerate(names, 1)
                ],
            )
            connection.executemany(
                "INSERT INTO revision (record, number, digest, weights_digest, parameters, blob, created, manifest) "
                "VALUES (?, 1, ?, 'w', ?, 'x', '', '{}')",
                [(n, f"{n:064x}", 10 * n) for n in range(2, MANY + 1, 2)],
            )
            connection.execute("UPDATE record SET head = 1, latest = 1 WHERE id % 2 = 0")
        yield store


def counted(store: Store) -> tuple[pl.LazyFrame, list[int]]:
    reads: list[int] = []
    return scan_catalog(store._database, reads.append), reads


def test_a_row_says_what_the_record_and_its_head_are(store: Store, made: Any, teach: Callable[..., Any]) -> None:
    made.record(store, "bob")
    teach(0), teach(1)
    store.set_head("alice", 1)
    first = store.resolve("alice@1")
    row, bob = store.catalog().collect().to_dicts()
    assert row == {
        "name": "alice",
        "head": 1,
        "revisions": 2,
        "base": "tiny",
        "base_digest": made.base,
        "rank": 2,
        "targets": made.lora.targets,
        "alpha": made.lora.alpha,
        "alpha_rule": made.lora.alpha_rule,
        "parameters": first.manifest.parameters,
        "digest": first.digest,
        "weights_digest": first.weights_digest,
        "created": datetime.fromisoformat(store.record("alice").created).astimezone(UTC),
    }
    assert bob["head"] is None and bob["revisions"] == 0 and bob["digest"] is None


def test_the_whole_catalog_is_in_the_order_of_names(large: Store) -> None:
    frame = large.catalog().collect()
    assert frame.height == MANY and frame["name"].is_sorted()
    assert list(frame.columns) == list(COLUMNS)
    assert frame.schema == large.catalog().collect_schema()


FILTERS = {
    "common": pl.col("rank") == 4,
    "rare": pl.col("rank") == 256,
    "prefix": pl.col("name").str.starts_with("user-1"),
    "base": (pl.col("base") == "large") & (pl.col("rank") >= 8),
    "either": (pl.col("rank") == 256) | (pl.col("name") > "user-19"),
    "null": pl.col("head").is_null(),
    "of the head": (pl.col("parameters") < 5000) & pl.col("digest").is_not_null(),
    "literal first": pl.lit(100.0) > pl.col("alpha"),
    "partly sql": (pl.col("rank") == 8) & pl.col("name").str.contains("77"),
    "no sql": pl.col("name").str.ends_with("7"),
    "no sql in an or": (pl.col("rank") == 256) | pl.col("name").str.ends_with("7"),
    "negated": ~(pl.col("rank") == 4),
    "several values": pl.col("rank").is_in([4, 256]),
    "two columns": pl.col("parameters") > pl.col("alpha") * 100,
    "time": pl.col("created") < datetime(2026, 1, 2, tzinfo=UTC),
    "no row": pl.col("name") == "nobody",
}


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_gives_what_it_gives_on_the_whole_frame(large: Store, name: str) -> None:
    whole = large.catalog().collect().filter(FILTERS[name])
    assert large.catalog().filter(FILTERS[name]).collect().equals(whole)
    some = large.catalog().filter(FILTERS[name]).select("name", "alpha").head(7).collect()
    assert some.equals(whole.select("name", "alpha").head(7))
    streamed = large.catalog().filter(FILTERS[name]).collect(engine="streaming")
    assert streamed.sort("name").equals(whole)


@pytest.mark.parametrize("name", ["common", "rare", "prefix", "base", "null", "no row", "literal first"])
def test_a_filtered_head_reads_little(large: Store, name: str) -> None:
    frame, reads = counted(large)
    frame.filter(FILTERS[name]).head(50).collect()
    expected = large.catalog().filter(FILTERS[name]).head(50).collect().height
    assert expected <= sum(reads) <= MANY // 20


def test_a_plain_head_reads_just_that(large: Store) -> None:
    frame, reads = counted(large)
    assert frame.head(50).collect().height == 50 and sum(reads) == 50


def test_only_the_asked_columns_are_read(large: Store) -> None:
    statements: list[str] = []
    real = large._database.connect

    def traced() -> Any:
        connection = real()
        connection.set_trace_callback(statements.append)
        return connection

    large._database.connect = traced  # type: ignore[method-assign]
    try:
        large.catalog().filter(pl.col("rank") == 256).select("name").collect()
    finally:
        large._database.connect = real  # type: ignore[method-assign]
    (statement,) = [text for text in statements if text.startswith("SELECT")]
    assert "record.rank = 256" in statement and "alpha" not in statement


def test_a_rare_rank_is_found_through_an_index(large: Store) -> None:
    where, values = sql_of(FILTERS["rare"], {"rank": "record.rank"})
    plan = large._database.rows(
        f"EXPLAIN QUERY PLAN SELECT name FROM record WHERE {where} ORDER BY name LIMIT 50", values
    )
    assert [row["detail"] for row in plan] == ["SEARCH record USING COVERING INDEX record_by_rank (rank=?)"]


def test_counting_and_grouping_work(large: Store) -> None:
    assert large.catalog().select(pl.len()).collect().item() == MANY
    assert large.catalog().filter(pl.col("rank") == 256).select(pl.len()).collect().item() == 5
    counts = large.catalog().group_by("rank").len().sort("rank").collect()
    assert counts["len"].sum() == MANY and counts["rank"].to_list() == [4, 8, 256]


def test_a_catalog_is_read_anew_each_time(store: Store, made: Any) -> None:
    frame = store.catalog()
    assert frame.collect().height == 1
    made.record(store, "bob")
    assert frame.collect().height == 2


def test_the_catalog_does_without_torch() -> None:
    code = "import sys, mintbook.store.catalog; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(mintbook.errors.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_what_sql_cannot_say_lets_every_row_through() -> None:
    columns = {"rank": "rank", "name": "name"}
    for predicate in (pl.col("name").str.len_chars() > 3, pl.col("rank").cast(pl.String) == "4", pl.lit(True)):
        assert sql_of(predicate, columns) == ("1", [])
    assert sql_of(pl.col("other") == 4, columns) == ("1", [])
    assert sql_of(pl.col("rank") == pl.lit(4, dtype=pl.Int64), columns) == ("rank = ?", [4])
    assert sql_of(pl.lit(4) <= pl.col("rank"), columns) == ("rank >= ?", [4])
