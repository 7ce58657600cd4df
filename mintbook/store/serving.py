"""The weights of a revision as they are served: in the base's precision, checked at the speed of memory."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mintbook.errors import CorruptStore
from mintbook.store.blobs import Blobs
from mintbook.store.database import Database
from mintbook.store.page import Page
from mintbook.store.revisions import Revision

PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def unheard(_: str) -> None:
    """Listen to no stage."""


def copy_dtype(page: Page, compute_dtype: str) -> torch.dtype | None:
    """Return the precision of the copy that is kept beside a master, or ``None`` where the master serves itself."""
    dtype = PRECISIONS.get(compute_dtype)
    return None if dtype == page.tensor.dtype else dtype


class ServingPages:
    """The pages of a store as a base of some precision takes them."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database = database
        self._blobs = blobs

    def read(self, revision: Revision, dtype: torch.dtype, on_stage: Callable[[str], None]) -> Page | None:
        """Return the page from the file that was written for this precision, or ``None`` when there is none.

        Raises `CorruptStore` when the bytes do not have the checksum that was written, or are not the structure that
        the manifest names. ``on_stage`` hears ``resolve``, ``fetch`` and ``build`` as each of them ends.
        """
        row = self._database.row(
            "SELECT file, checksum FROM page_file WHERE weights = ? AND dtype = ?",
            (revision.blob, str(dtype).removeprefix("torch.")),
        )
        on_stage("resolve")
        if row is None:
            return None
        content = self._blobs.read(row["file"], revision.reference)
        on_stage("fetch")
        page = self._blobs.parse_page(content, row["file"], revision.reference, expected=row["checksum"])
        check_structure(page, revision)
        on_stage("build")
        return page


def check_structure(page: Page, revision: Revision) -> None:
    """Raise `CorruptStore` unless the page has the sites, the rank and the size that the manifest names."""
    manifest = revision.manifest
    found = {"rank": page.rank, "parameters": page.parameters, "targets": tuple(site.name for site in page.sites)}
    for name, value in found.items():
        if value != getattr(manifest, name):
            raise CorruptStore(
                f"The weights of {revision.reference} have {name} {value!r}, and its manifest names "
                f"{getattr(manifest, name)!r}. Restore the store from a backup."
            )
