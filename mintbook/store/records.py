"""Records and what they point at: heads, aliases, and the history of both."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any

from mintbook.config import LoraConfig
from mintbook.errors import RecordExists, UnknownReference, nearest
from mintbook.store.clock import utc_now
from mintbook.store.database import Database
from mintbook.store.manifest import canonical
from mintbook.store.reference import HEAD, check_alias, check_name

_NEAR = 200
"""Names before and after the asked one in the order of names among which near ones are looked for."""


@dataclass(frozen=True, slots=True)
class Record:
    """The durable side of an adapter: its name, what it is made for, and which revision is current."""

    name: str
    base_digest: str
    base_name: str
    lora: LoraConfig
    created: str
    latest: int
    """Number of the newest revision, which is also how many there are; 0 before the first."""
    head: int | None
    """Number of the current revision; None before the first."""

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain data, ready for JSON."""
        plain = {
            name: getattr(self, name) for name in ("name", "base_digest", "base_name", "created", "latest", "head")
        }
        return {**plain, "lora": self.lora.to_dict()}


@dataclass(frozen=True, slots=True)
class Move:
    """One change of what a head or an alias points at."""

    pointer: str
    """The alias, or ``"head"``."""
    number: int
    previous: int | None
    at: str


def record_id(connection: sqlite3.Connection, name: str) -> int | None:
    """Return the row id of a record, or None."""
    row = connection.execute("SELECT id FROM record WHERE name = ?", (name,)).fetchone()
    return None if row is None else int(row["id"])


def move_head(connection: sqlite3.Connection, record: int, number: int) -> None:
    """Point a record's head at one of its revisions, and write the history of it."""
    previous = connection.execute("SELECT head FROM record WHERE id = ?", (record,)).fetchone()["head"]
    connection.execute("UPDATE record SET head = ? WHERE id = ?", (number, record))
    _write_move(connection, record, HEAD, number, previous)


def _write_move(connection: sqlite3.Connection, record: int, pointer: str, number: int, previous: int | None) -> None:
    connection.execute(
        "INSERT INTO move (record, pointer, number, previous, at) VALUES (?, ?, ?, ?, ?)",
        (record, pointer, number, previous, utc_now()),
    )


class Records:
    """The records of a store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, *, base_digest: str, base_name: str, lora: LoraConfig) -> Record:
        """Write a record that has no revision yet; raise `RecordExists` when the name is taken."""
        check_name(name)
        targets = lora.targets if isinstance(lora.targets, str) else " ".join(lora.targets)
        values = (name, base_digest, base_name, lora.rank, lora.alpha, lora.alpha_rule, targets)
        with self._database.transaction() as connection:
            if record_id(connection, name) is not None:
                raise RecordExists(f"A record named {name!r} exists already. Use it, or choose another name.")
            connection.execute(
                "INSERT INTO record (name, base_digest, base_name, rank, alpha, alpha_rule, targets, lora, created) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*values, canonical(lora.to_dict()), utc_now()),
            )
        return self.get(name)

    def find(self, name: str) -> Record | None:
        """Return the record of this name, or None."""
        row = self._database.row("SELECT * FROM record WHERE name = ?", (check_name(name),))
        return None if row is None else _record(row)

    def get(self, name: str) -> Record:
        """Return the record of this name; raise `UnknownReference` with near names."""
        record = self.find(name)
        if record is None:
            raise self.unknown(name)
        return record

    def unknown(self, name: str) -> UnknownReference:
        """Return the error for a record that does not exist."""
        near = self._database.rows(
            "SELECT name FROM (SELECT name FROM record WHERE name >= ? ORDER BY name LIMIT ?) UNION ALL "
            "SELECT name FROM (SELECT name FROM record WHERE name < ? ORDER BY name DESC LIMIT ?)",
            (name, _NEAR, name, _NEAR),
        )
        hint = nearest(name, [row["name"] for row in near]) if near else " The store holds no records yet."
        return UnknownReference(f"There is no record {name!r} in {self._database.path.parent}.{hint}")

    def in_order(self, *, prefix: str, limit: int | None, after: str | None) -> list[Record]:
        """Return records in the order of their names."""
        rows = self._database.rows(
            "SELECT * FROM record WHERE name >= ? AND name < ? AND name > ? ORDER BY name LIMIT ?",
            (prefix, prefix + "\x7f", after or "", -1 if limit is None else limit),
        )
        return [_record(row) for row in rows]

    def count(self) -> int:
        """Return how many records there are."""
        return int(self._database.rows("SELECT count(*) FROM record")[0][0])

    def set_head(self, name: str, number: int) -> Record:
        """Make an existing revision the current one."""
        with self._database.transaction() as connection:
            move_head(connection, self._revision_owner(connection, name, number), number)
        return self.get(name)

    def set_alias(self, name: str, alias: str, number: int) -> None:
        """Point an alias at an existing revision."""
        check_alias(alias)
        with self._database.transaction() as connection:
            record = self._revision_owner(connection, name, number)
            row = connection.execute(
                "SELECT number FROM alias WHERE record = ? AND name = ?", (record, alias)
            ).fetchone()
            connection.execute(
                "INSERT OR REPLACE INTO alias (record, name, number) VALUES (?, ?, ?)", (record, alias, number)
            )
            _write_move(connection, record, alias, number, row["number"] if row else None)

    def aliases(self, name: str) -> dict[str, int]:
        """Return alias → revision number."""
        self.get(name)
        rows = self._database.rows(
            "SELECT alias.name, number FROM alias JOIN record ON record.id = record "
            "WHERE record.name = ? ORDER BY alias.name",
            (name,),
        )
        return {row["name"]: row["number"] for row in rows}

    def history(self, name: str) -> list[Move]:
        """Return every move of the record's head and aliases, oldest first."""
        self.get(name)
        rows = self._database.rows(
            "SELECT pointer, number, previous, at FROM move JOIN record ON record.id = record "
            "WHERE record.name = ? ORDER BY move.id",
            (name,),
        )
        return [Move(**row) for row in rows]

    def _revision_owner(self, connection: sqlite3.Connection, name: str, number: int) -> int:
        row = connection.execute("SELECT id, latest FROM record WHERE name = ?", (check_name(name),)).fetchone()
        if row is None:
            raise self.unknown(name)
        if not isinstance(number, int) or not 1 <= number <= row["latest"]:
            raise UnknownReference(f"There is no revision {name}@{number}. {holdings(name, row['latest'], {})}")
        return int(row["id"])


def holdings(name: str, latest: int, aliases: dict[str, int]) -> str:
    """Return a sentence on what a record has, for an error message.

    >>> holdings("alice", 4, {"prod": 2})
    'alice has revisions 1–4 and alias prod.'
    """
    if latest == 0:
        return f"{name} has no revision yet; train it first."
    numbers = "revision 1" if latest == 1 else f"revisions 1–{latest}"
    if not aliases:
        return f"{name} has {numbers} and no alias."
    return f"{name} has {numbers} and {'alias' if len(aliases) == 1 else 'aliases'} {', '.join(aliases)}."


def _record(row: sqlite3.Row) -> Record:
    return Record(
        name=row["name"],
        base_digest=row["base_digest"],
        base_name=row["base_name"],
        lora=LoraConfig.from_options(**json.loads(row["lora"])),
        created=row["created"],
        latest=row["latest"],
        head=row["head"],
    )
