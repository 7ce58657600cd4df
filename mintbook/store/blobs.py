"""Files named by the sha256 of their bytes: written beside, forced to disk, then renamed to where they are found."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError

from mintbook.errors import CorruptStore, FormatError, ShapeError, StoreError
from mintbook.store.filesystem import file_digest, sync_file, sync_folder
from mintbook.store.page import Page
from mintbook.store.page_file import Content, checksum, parse_page, read_bytes


@dataclass(frozen=True, slots=True)
class Staged:
    """A complete file on disk that has no name in the store yet."""

    temporary: Path
    digest: str
    checksum: str = ""
    """XXH3 of its bytes, for files that are read often."""


class Blobs:
    """A store's bytes: ``blobs/ab/abcd…`` for those that have a name, ``incoming/`` for those that do not yet."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "blobs"
        self.incoming = root / "incoming"
        for folder in (self.folder, self.incoming):
            folder.mkdir(exist_ok=True)

    def path(self, digest: str) -> Path:
        """Return where the blob of this sha256 lies, or would lie."""
        return self.folder / digest[:2] / digest

    def stage_page(self, page: Page) -> Staged:
        """Write a page beside the blobs."""
        with self._temporary() as temporary:
            page.save(temporary)
            return replace(self._synced(temporary), checksum=checksum(read_bytes(temporary)))

    def stage_file(self, source: Path) -> Staged:
        """Take in a file without removing it: a second name of its bytes where the disk allows, else a copy."""
        if not source.is_file():
            raise StoreError(f"{source} is to become part of a revision, but there is no such file.")
        with self._temporary() as temporary:
            try:
                os.link(source, temporary)
                # Its age is counted from here: the collector of strays must not take it for an old one.
                os.utime(temporary)
            except OSError:
                temporary.unlink(missing_ok=True)
                shutil.copyfile(source, temporary)
            return self._synced(temporary)

    def place(self, staged: list[Staged]) -> None:
        """Give staged files their names, and return when both bytes and names are on disk."""
        # The outer one always: a folder in it may have been made by a process that died before forcing it to disk.
        folders = {self.folder}
        for item in staged:
            target = self.path(item.digest)
            target.parent.mkdir(exist_ok=True)
            # Over an equal blob too: it may be damaged, or about to be collected as an old stray.
            item.temporary.replace(target)
            folders.add(target.parent)
        for folder in sorted(folders):
            sync_folder(folder)

    def checked(self, digest: str, of: str) -> Path:
        """Return a blob's path after hashing its bytes; raise `CorruptStore` with the file and the reference ``of``."""
        path = self.path(digest)
        if not path.is_file():
            raise CorruptStore(f"{path}, which {of} needs, is missing. Restore it from a backup.")
        found = file_digest(path)
        if found != digest:
            raise CorruptStore(
                f"{path}, which {of} needs, is damaged: its bytes have digest {found}. Restore it from a backup."
            )
        return path

    def read(self, digest: str, of: str) -> Content:
        """Read a blob without hashing it; raise `CorruptStore` when it cannot be read."""
        path = self.path(digest)
        try:
            return read_bytes(path)
        except FileNotFoundError:
            raise CorruptStore(f"{path}, which {of} needs, is missing. Restore it from a backup.") from None
        except (OSError, FormatError) as error:
            raise CorruptStore(
                f"{path}, which {of} needs, cannot be read: {error} Restore it from a backup."
            ) from error

    def parse_page(self, content: Content, digest: str, of: str, *, expected: str | None = None) -> Page:
        """Return the page that a blob's content is; raise `CorruptStore` when it is none or has another checksum."""
        path = self.path(digest)
        if expected is not None and (found := checksum(content)) != expected:
            raise CorruptStore(
                f"{path}, which {of} needs, is damaged: its bytes have checksum {found}, and {expected} was written. "
                "Restore it from a backup."
            )
        try:
            return parse_page(content, path)
        except (FormatError, ShapeError) as error:
            raise CorruptStore(f"{path}, which {of} needs, is damaged: {error}") from error

    def all_files(self) -> Iterator[Path]:
        """Return every file under the folders of the store's bytes, temporary ones among them."""
        for folder in (self.folder, self.incoming):
            yield from (path for path in sorted(folder.rglob("*")) if path.is_file())

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        temporary = self.incoming / f"{os.getpid()}-{uuid.uuid4().hex}"
        try:
            yield temporary
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            raise StoreError(
                f"A file could not be written in {self.incoming}: {error}. Is there room on the disk?"
            ) from error
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _synced(self, temporary: Path) -> Staged:
        sync_file(temporary)
        return Staged(temporary, file_digest(temporary))
