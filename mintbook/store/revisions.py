"""Revisions: the immutable snapshots of a record, and the resolution of a reference to exactly one of them."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from dataclasses import dataclass
from typing import Any

from mintbook.display import Block, Card, Facts, Note, number_text, short_digest
from mintbook.display.quantity import Value
from mintbook.display.shown import Shown
from mintbook.errors import CorruptStore, UnknownReference
from mintbook.store.database import Database
from mintbook.store.manifest import Manifest
from mintbook.store.records import Records, holdings
from mintbook.store.reference import Reference

_COLUMNS = (
    "SELECT record.name, number, digest, weights_digest, blob, state_blob, revision.created, manifest "
    "FROM revision JOIN record ON record.id = revision.record "
)


@dataclass(frozen=True, slots=True, repr=False)
class Revision(Shown):
    """A fixed snapshot of an adapter: what training made, and what rollout, evaluation and serving name."""

    record: str
    number: int
    digest: str
    """sha256 of the manifest, which names the weights: equal exactly for equal content and provenance."""
    weights_digest: str
    manifest: Manifest
    blob: str
    """sha256 of the file of the weights."""
    state_blob: str | None
    """sha256 of the file of the training state, where one was kept."""
    created: str

    @property
    def reference(self) -> str:
        """The short name, ``alice@3``."""
        return f"{self.record}@{self.number}"

    def to_dict(self) -> dict[str, Any]:
        """Return the revision as plain data, ready for JSON."""
        names = ("record", "number", "digest", "weights_digest", "blob", "state_blob", "created")
        plain = {name: getattr(self, name) for name in names}
        return {**plain, "reference": self.reference, "manifest": self.manifest.to_dict()}

    def card(self) -> Card:
        """Return what the revision is, how it came to be and what it does to the base."""
        manifest, receipt = self.manifest, self.manifest.receipt
        facts: list[tuple[str, Value]] = [
            ("digest", short_digest(self.digest)),
            ("made (UTC)", self.created[:16].replace("T", " ")),
            ("parent", short_digest(manifest.parent) if manifest.parent else "none: the first of its line"),
            ("base", f"{manifest.base_name} ({short_digest(manifest.base_digest)})"),
            ("adapter", f"rank {manifest.rank} on {manifest.sites} layers, {number_text(manifest.parameters)} numbers"),
            ("examples", manifest.data_count or None),
            ("code", f"mintbook {manifest.code_version}, torch {manifest.packages.get('torch', '?')}"),
        ]
        trained = [
            (name, manifest.metrics[name]) for name in ("step", "loss", "kl", "validation") if name in manifest.metrics
        ]
        effect = [
            ("‖ΔW‖", receipt.get("update_norm")),
            ("non-zero in B", f"{receipt['nonzero_b']:.0%}" if "nonzero_b" in receipt else None),
            ("largest logit shift on a probe", receipt.get("logit_shift")),
        ]
        blocks: list[Block] = [Facts(facts)]
        if trained:
            blocks.append(Facts([(f"last {name}", value) for name, value in trained]))
        blocks.append(Facts(effect))
        if manifest.cell:
            blocks.append(Note(f"Made by the cell: {manifest.cell}"))
        return Card(self.reference, "revision", blocks, badge=short_digest(self.digest))

    def __repr__(self) -> str:
        return f"<Revision {self.reference} · rank {self.manifest.rank} · {short_digest(self.digest)}>"


class Revisions:
    """The revisions of a store."""

    def __init__(self, database: Database, records: Records) -> None:
        self._database = database
        self._records = records

    def of_record(self, name: str) -> list[Revision]:
        """Return a record's revisions, oldest first."""
        self._records.get(name)
        return [decode(row) for row in self._database.rows(_COLUMNS + "WHERE record.name = ? ORDER BY number", (name,))]

    def batch(self, after: int, limit: int) -> tuple[int, list[sqlite3.Row]]:
        """Return the next ``limit`` rows of all revisions, undecoded, and where to go on: 0 at the end."""
        rows = self._database.rows(
            _COLUMNS.replace("SELECT ", "SELECT revision.id, ") + "WHERE revision.id > ? ORDER BY revision.id LIMIT ?",
            (after, limit),
        )
        return (rows[-1]["id"] if len(rows) == limit else 0), rows

    def resolve(self, reference: Reference) -> Revision:
        """Return the one revision that a reference names; raise `UnknownReference` with what exists instead."""
        if reference.digest is not None:
            return self._by_digest(reference.digest)
        number = "record.head"
        values: tuple[str | int | None, ...] = (reference.record,)
        if reference.number is not None:
            number, values = "?", (reference.record, reference.number)
        elif reference.alias is not None:
            number = "(SELECT alias.number FROM alias WHERE alias.record = record.id AND alias.name = ?)"
            values = (reference.record, reference.alias)
        row = self._database.row(_COLUMNS + f"WHERE record.name = ? AND revision.number = {number}", values)
        if row is None:
            raise self._unknown(reference)
        return decode(row)

    def _unknown(self, reference: Reference) -> UnknownReference:
        record = self._records.get(str(reference.record))
        kind = "revision" if reference.alias is None else "alias"
        held = holdings(record.name, record.latest, self._records.aliases(record.name))
        return UnknownReference(f"There is no {kind} {reference}. {held}")

    def _by_digest(self, digest: str) -> Revision:
        found = self._database.rows(
            _COLUMNS + "WHERE digest >= ? AND digest <= ? ORDER BY digest, revision.id LIMIT 20", (digest, digest + "g")
        )
        contents = {row["digest"] for row in found}
        if not contents:
            raise UnknownReference(
                f"There is no revision whose digest begins with {digest}. List a record's revisions to see theirs."
            )
        if len(contents) > 1:
            several = ", ".join(sorted(f"@{content[: len(digest) + 8]}" for content in contents))
            raise UnknownReference(f"@{digest} is the beginning of several digests: {several}. Give more digits.")
        return decode(found[0])


def decode(row: sqlite3.Row) -> Revision:
    """Return the revision of a row; raise `CorruptStore` when its manifest is not the one that its digest names."""
    text = row["manifest"]
    of = f"{row['name']}@{row['number']}"
    if hashlib.sha256(text.encode()).hexdigest() != row["digest"]:
        raise CorruptStore(
            f"The manifest of {of} does not match its digest {row['digest']}. Restore the store from a backup."
        )
    manifest = Manifest.from_dict(json.loads(text))
    if manifest.weights_digest != row["weights_digest"]:
        raise CorruptStore(f"The row of {of} names other weights than its manifest. Restore the store from a backup.")
    return Revision(
        record=row["name"],
        number=row["number"],
        digest=row["digest"],
        weights_digest=row["weights_digest"],
        manifest=manifest,
        blob=row["blob"],
        state_blob=row["state_blob"],
        created=row["created"],
    )
