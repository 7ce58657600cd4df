"""A contest: the same batches for every side, all answers checked, the rounds interleaved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

from mintbook.bench.batch import Answer, Batch, Side
from mintbook.bench.reference import Claim, Reference
from mintbook.bench.row import EVERY, Row
from mintbook.bench.timing import Timing, cpu_ms, cpu_ratio, interleaved, wall_ms, wall_ratio
from mintbook.passing_thread import in_passing_thread

Part = Literal["prefill", "step"]


@dataclass(frozen=True, slots=True)
class Case:
    """``batch`` prompts of ``length`` tokens for ``distinct`` adapters (0: the base), called ``note`` if not plain."""

    batch: int
    length: int
    distinct: int = 0
    note: str = ""

    @property
    def label(self) -> str:
        """The case in rows and tables: ``32x8`` has 8 adapters in 32 rows, ``32 base`` none.

        >>> Case(32, 64, 8).label, Case(32, 512, note="context 512").label
        ('32x8', '32 base, context 512')
        """
        rows = f"{self.batch}x{self.distinct}" if self.distinct else f"{self.batch} base"
        return f"{rows}, {self.note}" if self.note else rows

    @property
    def base(self) -> Case:
        """The same rows without adapters."""
        return Case(self.batch, self.length, 0, self.note)


class Entry(NamedTuple):
    """A side in a case."""

    case: Case
    side: str

    def __str__(self) -> str:
        return f"{self.side}, {self.case.label}"


Times = dict[Entry, list[Timing]]


class Contest:
    """Measures one ``part`` of every answer, and holds ``checked`` rows of each against the reference."""

    def __init__(
        self, part: Part, reference: Reference, *, rounds: int, checked: int, say: Callable[[str], None]
    ) -> None:
        self.part: Part = part
        self.reference = reference
        self.rounds = rounds
        self.checked = checked
        self.say = say
        self.held = 0
        """Answers that were held against the reference so far."""
        self.gap = 0.0
        """The largest gap among them, in nats."""

    def hold(self, entries: Mapping[Entry, tuple[Side, Batch]]) -> Times:
        """Return the rounds of every entry; raise `MintbookError` when an answer is wrong.

        The first answers warm up and are checked before anything is measured; those of the measured rounds are checked
        afterwards where they differ from these.
        """
        claims: dict[Claim, None] = {}
        for entry, (side, batch) in entries.items():
            self.say(f"warming up: {entry}")
            claims |= dict.fromkeys(self._claims(entry, batch, side.answer(batch)))
        self._check(list(claims))
        later: dict[Claim, None] = {}

        def measure(entry: Entry) -> Timing:
            side, batch = entries[entry]
            answer = side.answer(batch)
            later.update(dict.fromkeys(self._claims(entry, batch, answer)))
            return answer.prefill if self.part == "prefill" else answer.step

        times = interleaved({entry: partial(measure, entry) for entry in entries}, self.rounds, self.say)
        self._check([claim for claim in later if claim not in claims])
        return times

    def rows(self) -> list[Row]:
        """Return what the checks found."""
        held = Row(EVERY, EVERY, "answers checked", self.held, "answers")
        return [held, Row(EVERY, EVERY, "largest gap to the reference", self.gap, "nats")]

    def _check(self, claims: list[Claim]) -> None:
        self.gap = max(self.gap, in_passing_thread(partial(self.reference.check, claims, self.say)))
        self.held += len(claims)

    def _claims(self, entry: Entry, batch: Batch, answer: Answer) -> list[Claim]:
        last, count = len(batch.prompts) - 1, min(self.checked, len(batch.prompts))
        rows = sorted({round(i * last / max(1, count - 1)) for i in range(count)})
        return [Claim(str(entry), batch.prompts[i], answer.tokens[i], batch.adapters[i]) for i in rows]


def rows_of(times: Times, tokens: Callable[[Case], int], part: Part) -> list[Row]:
    """Return the rows of a contest: times and tokens per second, and what adapters cost over the same side's base."""
    rows = []
    for (case, side), timings in times.items():
        rows += [
            Row(case.label, side, "wall", wall_ms(timings), f"ms per {part}"),
            Row(case.label, side, "cpu", cpu_ms(timings), f"ms per {part}"),
            Row(case.label, side, "speed", tokens(case) / wall_ms(timings) * 1e3, "tokens/s"),
        ]
        base = times.get(Entry(case.base, side))
        if case.distinct and base is not None:
            rows.append(Row(case.label, side, "wall over base", wall_ratio(timings, base), "ratio"))
            rows.append(Row(case.label, side, "cpu over base", cpu_ratio(timings, base), "ratio"))
    return rows
