"""The SQLite file that is the truth about a store: connections, transactions, and its failures in mintbook's words."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mintbook.errors import CorruptStore, StoreError, StoreUnsupported
from mintbook.store.schema import check_format, migrate

BUSY_S = 20.0
"""Seconds to wait for another process's transaction; all are short."""


class Database:
    """One SQLite file in WAL mode, used by any thread of one process and by other processes of the same host."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._closed = False
        with self._named_failures():
            self._connection = self.connect()
            try:
                check_format(self._connection)
                self._use_wal()
                migrate(self._connection)
            except BaseException:
                self._connection.close()
                raise

    def connect(self) -> sqlite3.Connection:
        """Open a further connection, for a reader that wants a view of its own; the caller closes it."""
        connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        # FULL: a commit that has returned survives a power cut, as the files it names do.
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """Return the rows of one query."""
        with self._lock, self._named_failures():
            return self._open().execute(sql, parameters).fetchall()

    def row(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Row | None:
        """Return the first row of one query, or None."""
        found = self.rows(sql, parameters)
        return found[0] if found else None

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the store's one write lock: all that is executed inside becomes visible together, or not at all."""
        with self._lock, self._named_failures():
            connection = self._open()
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with self._lock:
            self._closed = True
            self._connection.close()

    def _open(self) -> sqlite3.Connection:
        if self._closed:
            raise StoreError(f"The store {self.path.parent} was closed. Open it again.")
        if self._process != os.getpid():
            raise StoreError(
                f"The store {self.path.parent} was opened by process {self._process}, and a connection does not "
                "survive a fork. Open the store again in this process."
            )
        return self._connection

    def _use_wal(self) -> None:
        # Two processes that switch a new file at once make SQLite answer "locked" without waiting.
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                mode = self._connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
                break
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        if mode != "wal":
            raise StoreUnsupported("the file system does not support SQLite's write-ahead log. Choose a local disk.")

    @contextmanager
    def _named_failures(self) -> Iterator[None]:
        try:
            yield
        except StoreUnsupported as error:
            raise StoreUnsupported(f"{self.path.parent} cannot hold a store: {error}") from None
        except sqlite3.OperationalError as error:
            text = str(error)
            if "locked" in text or "busy" in text:
                raise StoreError(
                    f"{self.path} was busy for {BUSY_S:.0f} s: another process holds its write lock. "
                    "Try again, or end that process."
                ) from error
            if "readonly" in text or "unable to open" in text:
                raise StoreUnsupported(
                    f"{self.path} cannot be written: {text}. Choose a folder that you may write to."
                ) from error
            raise StoreError(f"SQLite could not use {self.path}: {text}.") from error
        except sqlite3.DatabaseError as error:
            # The subclasses tell of a wrong statement, which is a fault of ours and not of the file.
            if type(error) is not sqlite3.DatabaseError:
                raise
            raise CorruptStore(f"{self.path} is damaged: {error}. Restore it from a backup.") from error
