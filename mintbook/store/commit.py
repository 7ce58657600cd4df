"""The commit: bytes first, the row that names them last, so that what can be seen is complete."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mintbook.errors import BaseMismatch, FormatError
from mintbook.store.blobs import Blobs, Staged
from mintbook.store.clock import utc_now
from mintbook.store.database import Database
from mintbook.store.leases import Lease, check_lease
from mintbook.store.manifest import Manifest
from mintbook.store.page import LAYOUT, Page
from mintbook.store.records import Records, move_head
from mintbook.store.serving import copy_dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What is to become the next revision of a record."""

    record: str
    page: Page
    manifest: Manifest
    state: Path | None = None
    """A file of training state that moves into the store: gone from here once the revision is visible."""
    lease: Lease | None = None


@dataclass(slots=True)
class _Files:
    """What a draft becomes on disk."""

    weights: Staged
    serving: Staged | None = None
    state: Staged | None = None

    def all(self) -> list[Staged]:
        return [file for file in (self.weights, self.serving, self.state) if file is not None]


class Committer:
    """Writes drafts as revisions."""

    def __init__(self, database: Database, blobs: Blobs, records: Records) -> None:
        self._database = database
        self._blobs = blobs
        self._records = records

    def commit(self, drafts: Sequence[Draft]) -> list[int]:
        """Write all drafts in one transaction, move each record's head, and return the revisions' numbers.

        A draft whose manifest the record holds already yields that revision and moves no head, so that a retry is safe.
        """
        for draft in drafts:
            _check(draft)
        numbers = [self._number_of(draft) for draft in drafts]
        fresh = [draft for draft, number in zip(drafts, numbers, strict=True) if number is None]
        written = iter(self._write(fresh) if fresh else [])
        for draft in drafts:
            if draft.state is not None:
                draft.state.unlink(missing_ok=True)
        return [next(written) if number is None else number for number in numbers]

    def _number_of(self, draft: Draft) -> int | None:
        row = self._database.row(
            "SELECT number FROM revision JOIN record ON record.id = record WHERE name = ? AND digest = ?",
            (draft.record, draft.manifest.digest),
        )
        return None if row is None else int(row["number"])

    def _write(self, drafts: Sequence[Draft]) -> list[int]:
        staged: list[_Files] = []
        try:
            for draft in drafts:
                files = _Files(self._blobs.stage_page(draft.page))
                staged.append(files)
                dtype = copy_dtype(draft.page, draft.manifest.compute_dtype)
                if dtype is not None:
                    files.serving = self._blobs.stage_page(draft.page.to(dtype))
                if draft.state is not None:
                    files.state = self._blobs.stage_file(draft.state)
            return self._publish(drafts, staged)
        finally:
            for file in (file for files in staged for file in files.all()):
                file.temporary.unlink(missing_ok=True)

    def _publish(self, drafts: Sequence[Draft], staged: Sequence[_Files]) -> list[int]:
        with self._database.transaction() as connection:
            owners = [self._owner(connection, draft) for draft in drafts]
            # Inside the transaction, because the collector of strays deletes inside one too: it cannot take a file
            # between its placing here and the row that names it.
            self._blobs.place([file for files in staged for file in files.all()])
            return [
                _insert(connection, owner, draft, files)
                for owner, draft, files in zip(owners, drafts, staged, strict=True)
            ]

    def _owner(self, connection: sqlite3.Connection, draft: Draft) -> int:
        row = connection.execute(
            "SELECT id, base_digest, base_name FROM record WHERE name = ?", (draft.record,)
        ).fetchone()
        if row is None:
            raise self._records.unknown(draft.record)
        if row["base_digest"] != draft.manifest.base_digest:
            raise BaseMismatch(
                f"{draft.record!r} belongs to base {row['base_name']} ({row['base_digest'][:12]}); the revision was "
                f"made for {draft.manifest.base_name} ({draft.manifest.base_digest[:12]}). "
                "Make a new record for that base."
            )
        check_lease(connection, row["id"], draft.record, draft.lease)
        return int(row["id"])


def _insert(connection: sqlite3.Connection, record: int, draft: Draft, files: _Files) -> int:
    manifest = draft.manifest
    digest = manifest.digest
    row = connection.execute("SELECT number FROM revision WHERE record = ? AND digest = ?", (record, digest)).fetchone()
    if row is not None:
        return int(row["number"])
    number = int(connection.execute("SELECT latest FROM record WHERE id = ?", (record,)).fetchone()["latest"]) + 1
    connection.execute(
        "INSERT INTO revision "
        "(record, number, digest, weights_digest, parameters, blob, state_blob, created, manifest) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            record,
            number,
            digest,
            manifest.weights_digest,
            manifest.parameters,
            files.weights.digest,
            None if files.state is None else files.state.digest,
            utc_now(),
            manifest.to_json(),
        ),
    )
    for dtype, file in ((manifest.dtype, files.weights), (manifest.compute_dtype, files.serving)):
        if file is not None:
            connection.execute(
                "INSERT OR REPLACE INTO page_file (weights, dtype, file, checksum) VALUES (?, ?, ?, ?)",
                (files.weights.digest, dtype, file.digest, file.checksum),
            )
    connection.execute("UPDATE record SET latest = ? WHERE id = ?", (number, record))
    move_head(connection, record, number)
    return number


def _check(draft: Draft) -> None:
    page, manifest = draft.page, draft.manifest
    if not bool(torch.isfinite(page.tensor).all()):
        broken = [
            name for name, pair in page.factors().items() if not all(bool(torch.isfinite(part).all()) for part in pair)
        ]
        where = f"{broken[0]} and {len(broken) - 1} more modules" if len(broken) > 1 else (broken or ["the padding"])[0]
        raise FormatError(
            f"The weights for {draft.record!r} hold NaN or infinity in {where}; they are not saved. "
            "Train with a lower learning rate."
        )
    found = {
        "layout_version": LAYOUT,
        "weights_digest": page.weights_digest(manifest.base_digest),
        "rank": page.rank,
        "sites": len(page.sites),
        "parameters": page.parameters,
        "dtype": str(page.tensor.dtype).removeprefix("torch."),
    }
    for name, value in found.items():
        if getattr(manifest, name) != value:
            raise FormatError(
                f"The manifest for {draft.record!r} says {name} {getattr(manifest, name)!r}, but the weights have "
                f"{value!r}. Make the manifest from the page that is saved."
            )
