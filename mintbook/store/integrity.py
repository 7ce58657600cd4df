"""Whether a store's bytes are what its rows say, and which files no row speaks of."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from mintbook.errors import CorruptStore, FormatError
from mintbook.store.blobs import Blobs
from mintbook.store.database import Database
from mintbook.store.page import Page
from mintbook.store.revisions import Revision, Revisions, decode
from mintbook.store.runs import Runs

_BATCH = 200


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a store."""

    reference: str | None
    """The revision that suffers, or None when it is the database itself."""
    message: str


def verify(database: Database, revisions: Revisions, blobs: Blobs, revision: Revision | None) -> list[Problem]:
    """Return what is wrong with one revision, or with the whole store when ``revision`` is None."""
    if revision is not None:
        return list(_problems(database, blobs, revision))
    found = [
        Problem(None, f"SQLite reports: {row[0]}") for row in database.rows("PRAGMA quick_check") if row[0] != "ok"
    ]
    found += [
        Problem(None, f"A row of table {row['table']} points at nothing in {row['parent']}.")
        for row in database.rows("PRAGMA foreign_key_check")
    ]
    at, more = 0, True
    while more:
        at, rows = revisions.batch(at, _BATCH)
        more = at > 0
        for row in rows:
            try:
                found += _problems(database, blobs, decode(row))
            except (CorruptStore, FormatError) as error:
                found.append(Problem(f"{row['name']}@{row['number']}", str(error)))
    return found


def _problems(database: Database, blobs: Blobs, revision: Revision) -> Iterator[Problem]:
    for digest in (revision.blob, revision.state_blob):
        if digest is None:
            continue
        try:
            blobs.checked(digest, revision.reference)
        except CorruptStore as error:
            yield Problem(revision.reference, str(error))
            continue
        if digest == revision.blob:
            page = blobs.parse_page(blobs.read(digest, revision.reference), digest, revision.reference)
            if page.weights_digest(revision.manifest.base_digest) != revision.weights_digest:
                yield Problem(revision.reference, f"{blobs.path(digest)} holds other weights than the manifest names.")
            yield from _copy_problems(database, blobs, revision, page)


def _copy_problems(database: Database, blobs: Blobs, revision: Revision, master: Page) -> Iterator[Problem]:
    """Look at the files that are read instead of the master; their checksums stand in the rows."""
    for row in database.rows("SELECT file, checksum FROM page_file WHERE weights = ?", (revision.blob,)):
        path, of = blobs.path(row["file"]), revision.reference
        try:
            if row["file"] != revision.blob:
                blobs.checked(row["file"], of)
            copy = blobs.parse_page(blobs.read(row["file"], of), row["file"], of, expected=row["checksum"])
        except CorruptStore as error:
            yield Problem(of, str(error))
            continue
        if not torch.equal(copy.tensor, master.to(copy.tensor.dtype).tensor) or copy.ranks != master.ranks:
            yield Problem(of, f"{path} is not the copy of {blobs.path(revision.blob)} that it is kept as.")


def collect_strays(database: Database, blobs: Blobs, runs: Runs, *, min_age_s: float) -> list[Path]:
    """Remove files and empty run folders that no row names and that are at least ``min_age_s`` old; return them."""
    removed = []
    for path in [*blobs.all_files(), *runs.empty_folders()]:
        if not _stray(database, blobs, path, min_age_s):
            continue
        # Asked again under the write lock: a commit may have placed an equal file since.
        with database.transaction():
            if _stray(database, blobs, path, min_age_s):
                path.rmdir() if path.is_dir() else path.unlink()
                removed.append(path)
    return removed


def _stray(database: Database, blobs: Blobs, path: Path, min_age_s: float) -> bool:
    try:
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return False
    if age < min_age_s:
        return False
    if path.is_dir():
        return database.row("SELECT 1 FROM run WHERE id = ?", (path.name,)) is None
    if path.is_relative_to(blobs.incoming):
        return True
    named = "SELECT 1 FROM revision WHERE blob = ? OR state_blob = ? UNION ALL SELECT 1 FROM page_file WHERE file = ?"
    return database.row(f"{named} LIMIT 1", (path.name,) * 3) is None
