"""The tables of a store, as the steps that lead from an empty file to the present format."""

from __future__ import annotations

import sqlite3

from mintbook.errors import StoreUnsupported

APPLICATION = 0x6D696E74
"""SQLite's application id of a store: the letters 'mint'."""

_FIRST = """
CREATE TABLE record (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    base_digest TEXT NOT NULL,
    base_name TEXT NOT NULL,
    rank INTEGER NOT NULL,
    alpha REAL NOT NULL,
    alpha_rule TEXT NOT NULL,
    targets TEXT NOT NULL,
    lora TEXT NOT NULL,
    created TEXT NOT NULL,
    latest INTEGER NOT NULL DEFAULT 0,
    head INTEGER,
    FOREIGN KEY (id, head) REFERENCES revision (record, number) DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX record_by_base ON record (base_digest, name);
CREATE INDEX record_by_rank ON record (rank, name);
CREATE TABLE revision (
    id INTEGER PRIMARY KEY,
    record INTEGER NOT NULL REFERENCES record (id),
    number INTEGER NOT NULL,
    digest TEXT NOT NULL,
    weights_digest TEXT NOT NULL,
    parameters INTEGER NOT NULL,
    blob TEXT NOT NULL,
    state_blob TEXT,
    created TEXT NOT NULL,
    manifest TEXT NOT NULL,
    UNIQUE (record, number),
    UNIQUE (record, digest)
);
CREATE INDEX revision_by_digest ON revision (digest);
CREATE INDEX revision_by_blob ON revision (blob);
CREATE INDEX revision_by_state ON revision (state_blob) WHERE state_blob IS NOT NULL;
CREATE TABLE alias (
    record INTEGER NOT NULL REFERENCES record (id),
    name TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (record, name),
    FOREIGN KEY (record, number) REFERENCES revision (record, number)
) WITHOUT ROWID;
CREATE TABLE move (
    id INTEGER PRIMARY KEY,
    record INTEGER NOT NULL REFERENCES record (id),
    pointer TEXT NOT NULL,
    number INTEGER NOT NULL,
    previous INTEGER,
    at TEXT NOT NULL
);
CREATE INDEX move_by_record ON move (record, id);
CREATE TABLE lease (
    record INTEGER PRIMARY KEY REFERENCES record (id),
    token TEXT NOT NULL,
    process TEXT NOT NULL,
    since TEXT NOT NULL
);
CREATE TABLE run (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    record INTEGER REFERENCES record (id),
    config TEXT NOT NULL,
    status TEXT NOT NULL,
    process TEXT NOT NULL,
    started TEXT NOT NULL,
    ended TEXT,
    result TEXT,
    error TEXT
) WITHOUT ROWID;
CREATE INDEX run_by_record ON run (record, id);
CREATE INDEX run_by_status ON run (status, id);
"""

_SECOND = """
CREATE TABLE page_file (
    weights TEXT NOT NULL,
    dtype TEXT NOT NULL,
    file TEXT NOT NULL,
    checksum TEXT NOT NULL,
    PRIMARY KEY (weights, dtype)
) WITHOUT ROWID;
CREATE INDEX page_file_by_file ON page_file (file);
"""
"""The files of a revision's weights: the master, ``weights`` itself, and its copy in the precision it is served in."""

MIGRATIONS = (_FIRST, _SECOND)
"""Step i leads from format i to format i + 1."""

FORMAT = len(MIGRATIONS)


def check_format(connection: sqlite3.Connection) -> int:
    """Return the format number of an open database, 0 for an empty one; raise `StoreUnsupported` for what is no store.

    Nothing is written.
    """
    # In this order: should another process make the store between these reads, the later ones see all that it made.
    used = connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is not None
    application = int(connection.execute("PRAGMA application_id").fetchone()[0])
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if used and application != APPLICATION:
        raise StoreUnsupported("the file is an SQLite database of another program. Choose an empty folder.")
    if version > FORMAT:
        raise StoreUnsupported(
            f"the store has format {version}; this version of mintbook knows formats up to {FORMAT}. Update mintbook."
        )
    return version


def migrate(connection: sqlite3.Connection) -> None:
    """Bring an open database to the present format in one transaction, whoever else does the same at the same time."""
    if check_format(connection) == FORMAT:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Asked again: another process may have been faster.
        for step in MIGRATIONS[check_format(connection) :]:
            for statement in filter(None, step.strip().split(";\n")):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {FORMAT}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
