"""The fleet: every record of the store, asked together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mintbook.adapter import Adapter
from mintbook.answers import Answers
from mintbook.config import SampleConfig
from mintbook.display import Card, Facts, Note, Table
from mintbook.display.quantity import Value, bytes_text, number_text
from mintbook.display.shown import Shown
from mintbook.feed import Happening
from mintbook.prewarming import start_prewarm
from mintbook.run import Run
from mintbook.runtime import Prompt, Runtime
from mintbook.serve.counters import ResidencyCounters
from mintbook.serve.residents import residents_frame
from mintbook.store.revisions import Revision

if TYPE_CHECKING:
    import polars

SHOWN = 20


class Fleet(Shown):
    """All adapters of a session's store; ``fleet["alice"]`` is one of them."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def __getitem__(self, name: str) -> Adapter:
        """Return the adapter of that name; raise `UnknownReference`, with near names, when there is none."""
        return Adapter(self._runtime.store.record(name).name, self._runtime)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._runtime.store.find_record(name) is not None

    def __len__(self) -> int:
        return self._runtime.store.count_records()

    def __iter__(self) -> Iterator[Adapter]:
        last: str | None = None
        while page := self._runtime.store.records(limit=500, after=last):
            for record in page:
                yield Adapter(record.name, self._runtime)
            last = page[-1].name

    @property
    def catalog(self) -> polars.LazyFrame:
        """One row per record, read lazily: a filter or a head reads only what it needs."""
        return self._runtime.store.catalog()

    def generate(self, asks: Sequence[tuple[Adapter | str | None, Prompt]], **options: Any) -> Answers:
        """Answer prompts for many adapters in shared batches; the answers show themselves as a table.

        An ask is (adapter or reference, prompt): ``("alice", p)``, ``("bob@3", p)``, and ``(None, p)`` for the plain
        base. Revisions of one adapter may stand side by side, and one ask may come several times. ``options`` are the
        fields of `SampleConfig`; ``seed`` counts up from the given one, ask by ask. Every answer says in ``.revision``
        which revision gave it. Raises `UnknownReference` before anything runs when a reference names nothing.
        """
        sampling = SampleConfig.from_options(**options)
        found = [(self._revision(who), prompt) for who, prompt in asks]
        completions = self._runtime.complete(found, sampling.seeded(len(asks)))
        return Answers(completions, [(_name(who), prompt) for who, prompt in asks])

    def prewarm(self, whom: Sequence[Adapter | str], *, background: bool = False) -> Run[list[Revision]]:
        """Load revisions and see their effect, a few at a time, so that nobody who asks them waits for a load.

        ``whom`` are adapters or references, as for `generate`. The run is done when all are ready together; one that
        cannot be made ready fails the run at its end. Raises `CapacityError` when they never fit in the slots together.
        Waits and shows progress, unless ``background``.
        """
        revisions = [revision for revision in map(self._revision, whom) if revision is not None]
        run = start_prewarm(self._runtime, revisions, f"Prewarming {len(revisions)} revisions")
        if not background:
            run.wait()
        return run

    @property
    def residency(self) -> polars.DataFrame:
        """One row per revision that was asked for on this base: where it is, who uses it, what its last load took.

        ``state`` is ``hot`` (in a slot), ``loading``, ``warm`` (in memory, one copy away) or ``registered`` (in the
        store only); ``readiness`` is ``ready`` when its effect was seen in its slot. The longest unused come first.
        """
        return residents_frame(self._runtime.residency.residents())

    @property
    def residency_counters(self) -> ResidencyCounters:
        """Hits, loads, refusals and evictions on this base so far, and what is in memory now."""
        return self._runtime.residency.counters()

    def events(self, after: int = 0, *, wait_s: float = 0.0) -> list[Happening]:
        """Return what has happened to adapters and requests on this base after event number ``after``.

        A live display asks again with the last one's ``seq``. ``wait_s`` waits that long for the first. Kinds: loading,
        loaded, ``load failed``, ``load refused``, adopted, ready, evicted, refused, preempted.
        """
        return self._runtime.engine.feed.since(after, wait_s=wait_s)

    def card(self) -> Card:
        """Return the fleet as a table of its first records, with what is loaded now."""
        count = len(self)
        if not count:
            return Card("Fleet", "no adapters yet", [Note("Make one with session.adapter('name').")])
        bank = self._runtime.engine.model.bank
        seen = self.residency_counters
        facts: list[tuple[str, Value]] = [
            ("adapters", number_text(count)),
            ("loaded now", f"{seen.hot} revision{'s' * (seen.hot != 1)}, {bytes_text(seen.slot_bytes)}"),
            ("in use now", seen.leased),
            ("in memory beside them", f"{seen.warm} page{'s' * (seen.warm != 1)}, {bytes_text(seen.host_bytes)}"),
            ("loads", f"{seen.loads} done, {seen.failed_loads} failed, {seen.refusals} refused"),
            ("free rank-rows", f"{number_text(bank.free_rows)} of {number_text(bank.rows)}"),
        ]
        rows: list[list[Value]] = [
            [
                r.name,
                r.lora.rank,
                f"{r.name}@{r.head}" if r.head is not None else "not trained",
                r.created[:16].replace("T", " "),
            ]
            for r in self._runtime.store.records(limit=SHOWN)
        ]
        table = Table(columns=("adapter", "rank", "head", "made (UTC)"), rows=rows)
        rest = [Note(f"… and {number_text(count - SHOWN)} more: fleet.catalog has them all.")] if count > SHOWN else []
        return Card("Fleet", f"over {self._runtime.base.name}", [Facts(facts), table, *rest])

    def _revision(self, who: Adapter | str | None) -> Revision | None:
        if who is None:
            return None
        if isinstance(who, Adapter):
            return who.revision()
        return self[who].revision() if "@" not in who else self._runtime.store.resolve(who)

    def __repr__(self) -> str:
        return f"<Fleet · {len(self)} adapters · {self._runtime.base.name}>"


def _name(who: Adapter | str | None) -> str:
    return "base" if who is None else who.name if isinstance(who, Adapter) else who
