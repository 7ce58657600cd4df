"""The catalog: every record as a row of a lazy polars frame whose filters, columns and head go down into SQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import polars as pl
from polars._typing import PolarsDataType
from polars.io.plugins import register_io_source

from mintbook.store.database import Database
from mintbook.store.predicate import sql_of

COLUMNS: dict[str, tuple[str, PolarsDataType]] = {
    "name": ("record.name", pl.String),
    "head": ("record.head", pl.Int64),
    "revisions": ("record.latest", pl.Int64),
    "base": ("record.base_name", pl.String),
    "base_digest": ("record.base_digest", pl.String),
    "rank": ("record.rank", pl.Int64),
    "targets": ("record.targets", pl.String),
    "alpha": ("record.alpha", pl.Float64),
    "alpha_rule": ("record.alpha_rule", pl.String),
    "parameters": ("revision.parameters", pl.Int64),
    "digest": ("revision.digest", pl.String),
    "weights_digest": ("revision.weights_digest", pl.String),
    "created": ("record.created", pl.Datetime("us", "UTC")),
}
"""Column of the frame → its SQL and its type; ``parameters`` and the digests are those of the head."""

_COMPARABLE = {name: sql for name, (sql, _) in COLUMNS.items() if name != "created"}
"""Columns whose values SQLite compares as polars does; times are text there."""

_TABLES = "record LEFT JOIN revision ON revision.record = record.id AND revision.number = record.head"

_FIRST_BATCH = 64
_BATCH = 16_384

SCHEMA = pl.Schema({name: kind for name, (_, kind) in COLUMNS.items()})


def _unheard(_: int) -> None:
    pass


def scan_catalog(database: Database, on_rows: Callable[[int], None] = _unheard) -> pl.LazyFrame:
    """Return the records, in the order of names, as a lazy frame; ``on_rows`` is told how many rows each read took."""

    def scan(
        columns: list[str] | None, predicate: pl.Expr | None, limit: int | None, _: int | None
    ) -> Iterator[pl.DataFrame]:
        needed = list(COLUMNS) if columns is None else columns
        # A predicate that SQL cannot express in full may need columns that are not asked for.
        read = needed if predicate is None else list(dict.fromkeys([*needed, *predicate.meta.root_names()]))
        for frame in _read(database, read, predicate, limit, on_rows):
            kept = frame if predicate is None else frame.filter(predicate)
            yield kept.select(needed)

    return register_io_source(scan, schema=SCHEMA, explain_name="mintbook catalog")


def _read(
    database: Database, names: list[str], predicate: pl.Expr | None, limit: int | None, on_rows: Callable[[int], None]
) -> Iterator[pl.DataFrame]:
    where, parameters = ("1", []) if predicate is None else sql_of(predicate, _COMPARABLE)
    # SQL may let rows through that the predicate drops, so a limit holds only where there is none.
    bound = -1 if limit is None or predicate is not None else limit
    chosen = ", ".join(COLUMNS[name][0] for name in names) or "1"
    sql = f"SELECT {chosen} FROM {_TABLES} WHERE {where} ORDER BY record.name LIMIT ?"
    stored = {name: pl.String if name == "created" else COLUMNS[name][1] for name in names}
    connection = database.connect()
    try:
        cursor = connection.execute(sql, [*parameters, bound])
        size = _FIRST_BATCH
        while True:
            # polars stops asking when a later `head` is satisfied; small batches first keep what is read in vain small.
            rows = cursor.fetchmany(size)
            on_rows(len(rows))
            frame = pl.DataFrame([tuple(row) for row in rows], schema=stored, orient="row")
            yield frame.with_columns(
                pl.col(name).str.to_datetime(time_unit="us", time_zone="UTC") for name in names if name == "created"
            )
            if len(rows) < size:
                return
            size = min(2 * size, _BATCH)
    finally:
        connection.close()
