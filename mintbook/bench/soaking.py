"""``mintbook bench soak``: many adapters at the engine's limit, and every answer held to its one-by-one answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, ClassVar

from mintbook.bench.benchmark import Findings, Target
from mintbook.bench.row import EVERY, Row
from mintbook.bench.setting import Setting
from mintbook.bench.soak_drive import Drive, FailingStore, Record, check_alone
from mintbook.bench.soak_table import prompt_table
from mintbook.bench.stock import fill, load_bench_base, open_resident, temporary_folder
from mintbook.bench.traffic import Client
from mintbook.engine.counters import Counters
from mintbook.errors import MintbookError
from mintbook.model.sites import linear_sites
from mintbook.model.tiny_base import write_tiny_base
from mintbook.resident import Resident
from mintbook.serve.counters import ResidencyCounters

RANKS = (4, 8, 12)
SLOT_RANK = 8
"""Rank-rows of one slot on average."""
BROKEN = frozenset({9})
"""Adapters whose file is damaged all along."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How many adapters there are, how many fit in slots, and for how long they are asked."""

    adapters: int
    slots: int
    seconds: float


def _plan(setting: Setting) -> Plan:
    plan = Plan(250, 16, 30.0) if setting.quick else Plan(1000, 64, 600.0)
    return plan if setting.seconds is None else replace(plan, seconds=setting.seconds)


class Soak:
    """The soak."""

    name = "soak"
    targets: ClassVar[dict[str, Target]] = {"wrong": Target(0), "lost": Target(0), "memory_end_over_half": Target(1.05)}

    def protocol(self, setting: Setting) -> str:
        """Return how it measures."""
        plan = _plan(setting)
        return (
            f"{'quick' if setting.quick else 'full'}; soak, tiny random base unless another is given, float32, "
            f"batch-invariant, {setting.threads} threads, {plan.seconds:g} s; Zipf over {plan.adapters} adapters of "
            f"ranks {', '.join(map(str, RANKS))} with rank-rows for {plan.slots} of rank {SLOT_RANK}; a fixed table of "
            "prompts, greedy and seeded; 96 requests at a time, 6 % cancelled, 3 % of the reads failing, one file "
            "damaged; few keys and values, so that requests are preempted; prefixes kept; every answer's tokens and "
            "log-probabilities equal, bit for bit, to those when it is asked alone; memory_end_over_half: resident "
            "memory in the last tenth ÷ that in the sixth."
        )

    def measure(self, setting: Setting, say: Callable[[str], None]) -> Findings:
        """Soak, check every answer and that nothing has leaked, and return rows and ratios."""
        plan = _plan(setting)
        with temporary_folder() as folder, FailingStore.open(folder / "store") as store:
            if setting.base is None:
                setting = replace(setting, base=write_tiny_base(folder / "tiny"))
            base = load_bench_base(replace(setting, dtype="float32"))
            ranks = [RANKS[number % len(RANKS)] for number in range(plan.adapters)]
            sites = linear_sites(base.model)
            stock = fill(store, base, sites, ranks, say)
            table = prompt_table(int(base.model.config.vocab_size))  # type: ignore[union-attr, arg-type]
            with open_resident(setting, base, _room(plan, sum(site.width for site in sites) * 4)) as resident:
                for number in BROKEN:
                    stock.spoil(stock.revisions[number])
                store.failing = True
                drive = Drive(Client(resident, store, stock.revisions), table, BROKEN, say)
                record = drive.run(plan.seconds)
                store.failing = False
                leaked = _settle(resident)
                engine, residency = resident.engine.counters(), resident.residency.counters()
            with open_resident(setting, base, {"batch_invariant": True, "prefix_cache": False}) as alone:
                answers = check_alone(Client(alone, store, stock.revisions), table, record, say)
        _check_reached(record, engine, residency)
        if record.lost or leaked:
            raise MintbookError(
                f"{record.lost} answers are lost; {leaked or 'nothing has leaked'}. No row was written."
            )
        ratios = {"wrong": 0.0, "lost": 0.0, "memory_end_over_half": _end_over_half(record)}
        return Findings(_rows(plan, record, engine, residency, answers), ratios)


def _room(plan: Plan, row_bytes: int) -> dict[str, Any]:
    return {
        "batch_invariant": True,
        "slot_rows": plan.slots * SLOT_RANK,
        "kv_tokens": 1536,
        "max_sequences": 32,
        "host_cache_bytes": plan.slots * SLOT_RANK * row_bytes,
        "load_queue": 16,
    }


def _settle(resident: Resident) -> str:
    """Wait for loads that nobody wants any more, and return what is still held that should not be."""
    until = time.monotonic() + 10
    while resident.residency.counters().loads_in_flight and time.monotonic() < until:
        time.sleep(0.01)
    bank = resident.engine.model.bank
    found = resident.residency.residents()
    engine, residency = resident.engine.counters(), resident.residency.counters()
    held = {
        "requests": engine.requests_running + engine.requests_waiting + engine.requests_preempted,
        "keys and values": engine.kv_tokens_used - engine.kv_tokens_kept,
        "leases": sum(one.leases for one in found),
        "loads": residency.loads_in_flight + residency.loads_queued,
        "rank-rows": bank.rows - bank.free_rows - sum(one.rank_rows for one in found if one.slot is not None),
    }
    return ", ".join(f"{count} {what} are held" for what, count in held.items() if count)


def _check_reached(record: Record, engine: Counters, residency: ResidencyCounters) -> None:
    """Raise `MintbookError` when the soak went by something that it is there for."""
    reached = {
        "an answer": record.ended,
        "a cancellation": record.cancelled,
        "a failed load": record.failed,
        "a refusal": record.refused,
        "a preemption": engine.preemptions,
        "a kept prefix": engine.tokens_from_prefixes,
        "an eviction": residency.evictions,
        "a host eviction": residency.host_evictions,
        "a joined load": residency.joined,
    }
    missing = [name for name, count in reached.items() if not count]
    if missing:
        raise MintbookError(f"The soak has not seen {', '.join(missing)}. Give it more seconds. No row was written.")


def _end_over_half(record: Record) -> float:
    memory = [mib for _, mib in record.memory]
    tenth = max(1, len(memory) // 10)
    half = memory[len(memory) // 2 :][:tenth]
    return median(memory[-tenth:]) / median(half) if half and median(half) else 1.0


def _rows(plan: Plan, record: Record, engine: Counters, residency: ResidencyCounters, answers: int) -> list[Row]:
    memory = [mib for _, mib in record.memory]
    numbers: list[tuple[str, float, str]] = [
        ("answers", record.ended, "answers, each equal to the one alone"),
        ("different answers", answers, "pairs of adapter and prompt"),
        ("wrong", 0, "answers"),
        ("lost", record.lost, "answers"),
        ("cancelled", record.cancelled, "requests, each with a beginning of the answer"),
        ("failed", record.failed, "requests, as injected"),
        ("refused", record.refused, "requests"),
        ("tokens", record.tokens / plan.seconds, "tokens/s"),
        ("loads", residency.loads, "loads"),
        ("joined loads", residency.joined, "requests"),
        ("evictions", residency.evictions, "slots"),
        ("evictions from memory", residency.host_evictions, "pages"),
        ("preemptions", engine.preemptions, "requests"),
        ("tokens from kept prefixes", engine.tokens_from_prefixes, "tokens"),
        ("memory at half time", memory[len(memory) // 2], "MiB"),
        ("memory at the end", memory[-1], "MiB"),
    ]
    return [Row(EVERY, EVERY, metric, value, unit) for metric, value, unit in numbers]
