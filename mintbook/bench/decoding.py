"""``mintbook bench decode``: what a step costs with many adapters, over the base's and beside the peers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from mintbook.bench.adapters import in_slots
from mintbook.bench.batch import Batch, Side
from mintbook.bench.benchmark import Findings, Target
from mintbook.bench.contest import Case, Contest, Entry, Times, rows_of
from mintbook.bench.engine_side import EngineSide
from mintbook.bench.row import Row
from mintbook.bench.setting import Setting
from mintbook.bench.sides import Sides, open_sides
from mintbook.bench.timing import Timing, wall_ms, wall_ratio

RANK = 8
MIXED = (4, 8, 16, 32, 64)
SERVED = 32
ENGINE = EngineSide.name


@dataclass(frozen=True, slots=True)
class Plan:
    """What a quick or a full run does: its cases of the engine and of each peer, ``length`` tokens of prompt."""

    rounds: int
    steps: int
    checked: int
    length: int
    engine: tuple[Case, ...]
    peers: dict[str, tuple[Case, ...]]
    mixed: tuple[Case, ...] = ()

    @property
    def adapters(self) -> int:
        """Distinct adapters of rank 8 that the engine holds."""
        return max(case.distinct for case in self.engine)


def _plan(*, quick: bool) -> Plan:
    length = 16 if quick else 64  # vLLM reads prompts for adapters at some 150 tokens/s on two cores

    def cases(*shapes: tuple[int, int], tokens: int = length, note: str = "") -> tuple[Case, ...]:
        return tuple(Case(batch, tokens, distinct, note) for batch, distinct in shapes)

    bases, served = [(1, 0), (8, 0), (32, 0)], [(32, 32)] if quick else [(8, 8), (32, 8), (32, 32)]
    # 4 rows and none: 8 merged models of 4 rows each, for 32 rows of 8 adapters.
    engine = cases(*bases, (4, 0), (1, 1), (8, 8), (32, 8), (32, 32))
    if not quick:
        engine += cases((32, 1), (32, 4), (32, 16), (64, 0), (64, 64), (256, 0), (256, 256))
        engine += cases((32, 0), (32, 32), tokens=512, note="context 512")
    peers = {
        "transformers": cases(*bases),
        "peft": cases(*served),
        "vllm": cases(*served),
        "vllm without LoRA": cases((32, 0)) if quick else cases(*bases),
    }
    if quick:
        return Plan(3, 5, 2, length, engine, peers)
    return Plan(7, 12, 8, length, engine, peers, cases((32, 0), (32, 32), note="ranks 4 to 64"))


class Decode:
    """The benchmark of decode steps."""

    name = "decode"
    targets: ClassVar[dict[str, Target]] = {
        "over_base_32x32": Target(1.35, 1.25),
        "over_base_32x8": Target(1.14, 1.10),
        "over_generate_1": Target(1.0, at_least=True),
        "over_generate_8": Target(1.0, at_least=True),
        "over_generate_32": Target(1.0, at_least=True),
        "over_peft_32x32": Target(7, 10, at_least=True),
        "over_vllm_32x32": Target(3, 4, at_least=True),
        "over_vllm_base_32": Target(0.9, at_least=True),
    }

    def protocol(self, setting: Setting) -> str:
        """Return how it measures."""
        plan = _plan(quick=setting.quick)
        return (
            f"{'quick' if setting.quick else 'full'}; decode, greedy, {setting.dtype}, {setting.threads} threads; "
            f"random rank-{RANK} adapters on all linear layers, B non-zero; prompts of {plan.length} random tokens, "
            f"then {plan.steps} steps with all rows, timed through the public stream; {plan.rounds} interleaved "
            "rounds, medians of the ratios within a round; over_base: our step with adapters ÷ without; "
            "over_generate, over_peft, over_vllm, over_merged: our tokens/s ÷ theirs; merged: one pass of the base per "
            f"adapter, over its rows alone; up to {plan.checked} rows of every answer held against fp32 transformers, "
            "one by one."
        )

    def measure(self, setting: Setting, say: Callable[[str], None]) -> Findings:
        """Measure all sides in the same rounds and return rows and ratios."""
        plan = _plan(quick=setting.quick)
        ranks = [RANK] * plan.adapters
        mixed = [MIXED[i % len(MIXED)] for i in range(SERVED)] if plan.mixed else []
        largest = max(case.batch for case in plan.engine)
        room = {
            "slot_rows": max(sum(ranks), sum(mixed)),
            "kv_tokens": 16 + max(c.batch * (c.length + 16 * (plan.steps // 16 + 3)) for c in plan.engine),
            "max_sequences": largest,
            "max_adapters": largest,
        }
        longest = plan.length + plan.steps + 8
        with open_sides(setting, ranks=ranks + mixed, served=SERVED, longest=longest, room=room, say=say) as sides:
            contest = Contest("step", sides.reference, rounds=plan.rounds, checked=plan.checked, say=say)
            with in_slots(sides.engine, sides.pages[: len(ranks)]) as slots:
                engine = EngineSide(sides.engine, slots)
                engine.check_base_rows(Batch.random(8, 32, adapters=range(8), steps=3, vocabulary=sides.vocabulary))
                times = contest.hold(dict(_entries(plan, sides, engine)))
            if mixed:
                # Their numbers go on after those of rank 8, whose slots they take.
                with in_slots(sides.engine, sides.pages[len(ranks) :]) as slots:
                    side = EngineSide(sides.engine, [-1] * len(ranks) + slots)
                    numbers = range(len(ranks), len(ranks) + len(mixed))
                    times |= contest.hold(dict(_of_engine(plan.mixed, side, numbers, plan.steps, sides.vocabulary)))
            rows = [*rows_of(times, lambda case: case.batch, "step"), *_merged_rows(times), *contest.rows()]
            return Findings(rows, _ratios(times), sides.skipped, sides.versions)


def _of_engine(
    cases: Iterable[Case], side: Side, numbers: range, steps: int, vocabulary: int
) -> Iterator[tuple[Entry, tuple[Side, Batch]]]:
    for case in cases:
        adapters = numbers[: case.distinct]
        batch = Batch.random(case.batch, case.length, adapters=adapters, steps=steps, vocabulary=vocabulary)
        yield Entry(case, side.name), (side, batch)


def _entries(plan: Plan, sides: Sides, engine: EngineSide) -> Iterator[tuple[Entry, tuple[Side, Batch]]]:
    yield from _of_engine(plan.engine, engine, range(plan.adapters), plan.steps, sides.vocabulary)
    for name, cases in plan.peers.items():
        if name in sides.peers:
            yield from _of_engine(cases, sides.peers[name], range(SERVED), plan.steps, sides.vocabulary)


def _merged(times: Times, case: Case) -> list[Timing] | None:
    """Return what ``case`` takes with one merged model per adapter: a pass of the base per adapter, over its rows."""
    alone = times.get(Entry(Case(case.batch // max(1, case.distinct), case.length), ENGINE))
    return None if alone is None or not case.distinct else [timing.times(case.distinct) for timing in alone]


def _merged_rows(times: Times) -> list[Row]:
    rows = []
    for case, side in times:
        merged = _merged(times, case)
        if side == ENGINE and merged is not None and not case.note:
            rows.append(Row(case.label, "merged", "wall", wall_ms(merged), "ms per step"))
            rows.append(Row(case.label, "merged", "speed", case.batch / wall_ms(merged) * 1e3, "tokens/s"))
    return rows


def _ratios(times: Times) -> dict[str, float]:
    plain = {entry: timings for entry, timings in times.items() if not entry.case.note}
    length = next(iter(plain)).case.length

    def of(side: str, batch: int, distinct: int = 0) -> list[Timing] | None:
        return plain.get(Entry(Case(batch, length, distinct), side))

    ours = {(b, n): of(ENGINE, b, n) or [] for b, n in ((1, 0), (8, 0), (32, 0), (1, 1), (8, 8), (32, 8), (32, 32))}
    found = {f"over_base_{b}x{n}": wall_ratio(ours[b, n], ours[b, 0]) for b, n in ((32, 32), (32, 8), (8, 8), (1, 1))}
    rivals = [(f"over_generate_{b}", of("transformers", b), ours[b, 0]) for b in (1, 8, 32)]
    rivals.append(("over_peft_32x32", of("peft", 32, 32), ours[32, 32]))
    rivals.append(("over_vllm_32x32", of("vllm", 32, 32), ours[32, 32]))
    rivals.append(("over_vllm_base_32", of("vllm without LoRA", 32), ours[32, 0]))
    rivals += [
        (f"over_merged_{b}x{n}", _merged(plain, Case(b, length, n)), ours[b, n]) for b, n in ((32, 32), (32, 8), (8, 8))
    ]
    return found | {name: wall_ratio(theirs, own) for name, theirs, own in rivals if theirs is not None}
