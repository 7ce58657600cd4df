"""The store: records, their immutable revisions, aliases, leases and runs, in one folder of this host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import polars as pl
import torch

from mintbook.config import LoraConfig
from mintbook.errors import CorruptStore, StoreUnsupported
from mintbook.store.blobs import Blobs
from mintbook.store.catalog import scan_catalog
from mintbook.store.commit import Committer, Draft
from mintbook.store.database import Database
from mintbook.store.filesystem import network_type, sync_folder
from mintbook.store.integrity import Problem, collect_strays, verify
from mintbook.store.leases import Lease, Leases
from mintbook.store.manifest import Manifest
from mintbook.store.page import Page
from mintbook.store.records import Move, Record, Records
from mintbook.store.reference import Reference
from mintbook.store.revisions import Revision, Revisions
from mintbook.store.runs import RunRow, Runs, Status
from mintbook.store.serving import ServingPages, unheard


class Store:
    """One folder that holds records and revisions; any thread may use it, and other processes of the host may too."""

    def __init__(self, path: Path, database: Database) -> None:
        self.path = path
        self._database = database
        self._blobs = Blobs(path)
        self._records = Records(database)
        self._revisions = Revisions(database, self._records)
        self._leases = Leases(database, self._records)
        self._runs = Runs(database, self._records, path)
        self._serving = ServingPages(database, self._blobs)
        self._committer = Committer(database, self._blobs, self._records)

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open the store in a folder, and make both where there is none.

        Raises `StoreUnsupported` for a network file system, a folder that cannot be written, and a newer format.
        """
        folder = Path(path).expanduser().absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            kind = network_type(folder)
            if kind is not None:
                raise StoreUnsupported(
                    f"{folder} is on a network file system ({kind}), where SQLite's log is not safe. "
                    "Choose a folder on a local disk."
                )
            store = cls(folder, Database(folder / "store.sqlite"))
            sync_folder(folder)
            return store
        except OSError as error:
            raise StoreUnsupported(
                f"{folder} cannot hold a store: {error}. Choose a folder that you may write to."
            ) from error

    def close(self) -> None:
        """Close the store's files; a second call does nothing."""
        self._database.close()

    def __enter__(self) -> Self:
        """Return the store."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the store."""
        self.close()

    def create_record(self, name: str, *, base_digest: str, base_name: str, lora: LoraConfig) -> Record:
        """Make a record without revisions; raise `RecordExists` when the name is taken."""
        return self._records.create(name, base_digest=base_digest, base_name=base_name, lora=lora)

    def find_record(self, name: str) -> Record | None:
        """Return the record of this name, or None."""
        return self._records.find(name)

    def record(self, name: str) -> Record:
        """Return the record of this name; raise `UnknownReference` with near names."""
        return self._records.get(name)

    def records(self, *, prefix: str = "", limit: int | None = None, after: str | None = None) -> list[Record]:
        """Return records in the order of their names; ``after`` is the last name of the previous answer."""
        return self._records.in_order(prefix=prefix, limit=limit, after=after)

    def count_records(self) -> int:
        """Return how many records there are."""
        return self._records.count()

    def catalog(self) -> pl.LazyFrame:
        """Return one row per record as a lazy frame; filters, columns and `head` are pushed down into SQL."""
        return scan_catalog(self._database)

    def set_head(self, record: str, number: int) -> Record:
        """Make an existing revision the current one (rollback, or forward again); nothing is deleted."""
        return self._records.set_head(record, number)

    def set_alias(self, record: str, alias: str, number: int) -> None:
        """Point an alias at one of the record's revisions."""
        self._records.set_alias(record, alias, number)

    def aliases(self, record: str) -> dict[str, int]:
        """Return alias → revision number."""
        return self._records.aliases(record)

    def alias_history(self, record: str) -> list[Move]:
        """Return every move of the record's head and aliases, oldest first."""
        return self._records.history(record)

    def commit(
        self, record: str, *, page: Page, manifest: Manifest, state: Path | None = None, lease: Lease | None = None
    ) -> Revision:
        """Write the next revision of a record and make it the head; ``state`` moves into the store.

        What is visible is complete: the row is written after the bytes are on disk. The same manifest again yields the
        revision that it made the first time. The file ``state`` must not be written in place afterwards.

        Raises `FormatError` when the weights are not finite or not those of the manifest, `BaseMismatch` when the
        record belongs to another base, and `RecordLeased` when another session trains it.
        """
        return self.commit_many([Draft(record=record, page=page, manifest=manifest, state=state, lease=lease)])[0]

    def commit_many(self, drafts: Sequence[Draft]) -> list[Revision]:
        """Write several revisions that become visible together, or not at all."""
        numbers = self._committer.commit(drafts)
        return [self.resolve(Reference(draft.record, number)) for draft, number in zip(drafts, numbers, strict=True)]

    def resolve(self, reference: str | Reference) -> Revision:
        """Return the one revision that a reference names; raise `UnknownReference` with what exists instead."""
        return self._revisions.resolve(Reference.parse(reference) if isinstance(reference, str) else reference)

    def revisions(self, record: str) -> list[Revision]:
        """Return a record's revisions, oldest first."""
        return self._revisions.of_record(record)

    def page(self, revision: Revision, *, verify: bool = True) -> Page:
        """Read a revision's weights; with ``verify`` its bytes are hashed, and `CorruptStore` names the bad file."""
        if verify:
            self._blobs.checked(revision.blob, revision.reference)
        content = self._blobs.read(revision.blob, revision.reference)
        page = self._blobs.parse_page(content, revision.blob, revision.reference)
        if verify and page.weights_digest(revision.manifest.base_digest) != revision.weights_digest:
            raise CorruptStore(
                f"{self._blobs.path(revision.blob)} does not hold the weights of {revision.reference}. "
                "Restore it from a backup."
            )
        return page

    def serving_page(self, revision: Revision, dtype: torch.dtype, on_stage: Callable[[str], None] = unheard) -> Page:
        """Read a revision's weights in the precision they are served in, checked by structure and a fast checksum.

        A revision that was written for another precision is read from its master, hashed and rounded. ``on_stage``
        hears ``resolve``, ``fetch`` and ``build`` as they end. Raises `CorruptStore`.
        """
        page = self._serving.read(revision, dtype, on_stage)
        if page is None:
            page = self.page(revision).to(dtype)
            on_stage("build")
        return page

    def state_path(self, revision: Revision) -> Path | None:
        """Return the file of a revision's training state after hashing its bytes, or None when none was kept."""
        if revision.state_blob is None:
            return None
        return self._blobs.checked(revision.state_blob, revision.reference)

    def verify(self, revision: Revision | None = None) -> list[Problem]:
        """Hash the bytes of one revision, or of all, and return what is wrong; an empty list means nothing is."""
        return verify(self._database, self._revisions, self._blobs, revision)

    def collect_strays(self, *, min_age_s: float = 3600.0) -> list[Path]:
        """Remove files and empty run folders that no row names and that are at least ``min_age_s`` old; return them."""
        return collect_strays(self._database, self._blobs, self._runs, min_age_s=min_age_s)

    def lease(self, record: str, *, take_over: bool = False) -> Lease:
        """Take the record's one training session, for use in a ``with`` block.

        Raises `RecordLeased` with the holder's pid, host and since when. The lease of a dead process is free at once;
        ``take_over`` takes that of a living one, whose next commit is then refused.
        """
        return self._leases.take(record, take_over=take_over)

    def start_run(self, kind: str, record: str | None, config: dict[str, Any]) -> RunRow:
        """Write the row of a long action that begins, and make its folder."""
        return self._runs.start(kind, record, config)

    def update_run(
        self, run: str, *, status: Status, result: dict[str, Any] | None = None, error: str | None = None
    ) -> RunRow:
        """Write how a run ended; ``status="running"`` takes it up again in this process."""
        return self._runs.update(run, status, result, error)

    def run(self, run: str) -> RunRow:
        """Return one run; raise `UnknownReference` with near ids."""
        return self._runs.get(run)

    def runs(self, *, record: str | None = None, status: str | None = None, limit: int | None = None) -> list[RunRow]:
        """Return runs, newest first."""
        return self._runs.newest(record, status, limit)

    def run_folder(self, run: str) -> Path:
        """Return the folder that holds a run's events and checkpoints."""
        return self._runs.folder(run)
