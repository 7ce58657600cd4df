"""``mintbook bench load``: adapters from the store into slots, cold and warm, and the staircase of a cold burst."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from mintbook.bench.batch import Batch
from mintbook.bench.benchmark import Findings, Target
from mintbook.bench.load_pass import LoadPass, load_all
from mintbook.bench.peft_loading import peft_load_s
from mintbook.bench.reference import Claim, Reference
from mintbook.bench.row import EVERY, Row
from mintbook.bench.setting import Setting
from mintbook.bench.stock import (
    Stock,
    check_slots,
    empty_slots,
    fill,
    load_bench_base,
    open_resident,
    temporary_folder,
)
from mintbook.bench.traffic import Ask, Client, Heard, run_traffic
from mintbook.config import SampleConfig
from mintbook.model.sites import linear_sites
from mintbook.resident import Resident
from mintbook.store.page import Page
from mintbook.store.store import Store

RANK = 8
BURST = 16
PROMPT_TOKENS = 16
TOKENS = 8
PINNED = 200
"""Adapters that the host cache holds at most."""
COLD, CACHED, HOST = "cold", "page cache", "host cache"
NOT_COLD = "the system keeps the files in its page cache, so that nothing could be read cold"
Passes = dict[str, list[LoadPass]]
Stairs = dict[str, list[Heard]]


@dataclass(frozen=True, slots=True)
class Plan:
    """How many adapters become resident in a pass, how often all passes are made, and how many PEFT loads."""

    adapters: int
    rounds: int
    peft: int

    @property
    def edge(self) -> int:
        """Loads at the beginning and at the end of a pass that are compared."""
        return min(100, self.adapters // 3)

    @property
    def pinned(self) -> int:
        """Adapters that are loaded from the host cache."""
        return min(PINNED, self.adapters)


def _plan(*, quick: bool) -> Plan:
    return Plan(32, 3, 1) if quick else Plan(1000, 3, 3)


class Load:
    """The benchmark of loads."""

    name = "load"
    targets: ClassVar[dict[str, Target]] = {
        "cold_per_s": Target(300, at_least=True),
        "page_cache_per_s": Target(1500, at_least=True),
        "host_cache_per_s": Target(1500, at_least=True),
        "last_over_first": Target(1.2),
    }

    def protocol(self, setting: Setting) -> str:
        """Return how it measures."""
        plan = _plan(quick=setting.quick)
        return (
            f"{'quick' if setting.quick else 'full'}; load, {setting.dtype}, {setting.threads} threads; "
            f"{plan.adapters} random rank-{RANK} adapters on all linear layers from a store in the temporary folder "
            "into slots, all resident at the end, with EngineConfig's loads in flight and as many in line; cold: their "
            "files dropped from the page cache, which is checked; page cache: the files were read before; host cache: "
            f"{plan.pinned} that are pinned in memory; {plan.rounds} interleaved rounds, medians; last_over_first: "
            f"seconds of the last {plan.edge} loads ÷ the first, from the page cache; staircase: {BURST} adapters "
            "asked at once, until the k-th has its first token; over_peft: our loads/s from the page cache ÷ those of "
            "PEFT's load_adapter; slots held bit for bit against the adapters, the staircase's answers against fp32 "
            "transformers."
        )

    def measure(self, setting: Setting, say: Callable[[str], None]) -> Findings:
        """Load in every way, check the slots and the answers, and return rows and ratios."""
        plan = _plan(quick=setting.quick)
        say("opening the base")
        base = load_bench_base(setting)
        sites = linear_sites(base.model)
        row_bytes = sum(site.width for site in sites) * next(base.model.parameters()).element_size()
        room = {
            "slot_rows": RANK * (plan.adapters + BURST),
            "host_cache_bytes": plan.pinned * RANK * row_bytes,
            "prefix_cache": False,
        }
        skipped: dict[str, str] = {}
        with (
            temporary_folder() as folder,
            Store.open(folder) as store,
            open_resident(setting, base, room) as resident,
        ):
            stock = fill(store, base, sites, [RANK] * (plan.adapters + BURST), say)
            # The system gives memory when it is first written to, which costs more than a load.
            resident.engine.call(lambda model: model.bank.tensor.zero_())
            passes = _passes(resident, stock, plan, say)
            stairs = _staircase(resident, stock, plan, say)
            pages = [store.page(revision) for revision in stock.revisions[plan.adapters :]]
            peft_s = _peft(setting, resident, pages[: plan.peft + 1], skipped, say)
        if COLD not in passes:
            skipped[COLD] = NOT_COLD
        held = [heard for one in stairs.values() for heard in one][:: 4 if setting.quick else 1]
        claims = [Claim("staircase", heard.ask.prompt, heard.tokens, heard.ask.adapter) for heard in held]
        gap = Reference(base.folder, pages, setting.dtype).check(claims, say)
        rows = [*_pass_rows(passes, plan), *_stair_rows(stairs)]
        rows += [Row(CACHED, "peft", "speed", 1 / peft_s, "adapters/s")] if peft_s else []
        rows.append(Row(EVERY, EVERY, "answers held against the reference", len(claims), "answers"))
        rows.append(Row(EVERY, EVERY, "largest gap to the reference", gap, "nats"))
        return Findings(rows, _ratios(passes, stairs, plan, peft_s), skipped)


def _passes(resident: Resident, stock: Stock, plan: Plan, say: Callable[[str], None]) -> Passes:
    revisions = stock.revisions[: plan.adapters]
    found: Passes = {}
    load_all(resident, stock.store, revisions[: plan.edge])  # once, so that no thread and no buffer is new
    for number in range(plan.rounds):
        for way in (COLD, CACHED, HOST):
            say(f"round {number + 1} of {plan.rounds}: {way}")
            residency = empty_slots(resident)
            wanted = revisions[: plan.pinned] if way == HOST else revisions
            if way == COLD and not stock.drop_from_page_cache(wanted):
                continue
            if way == CACHED:
                stock.read_into_page_cache(wanted)
            for revision in wanted if way == HOST else ():
                residency.pin_in_memory(revision, stock.store)
            one = load_all(resident, stock.store, wanted)
            check_slots(resident, dict(list(zip(one.slots, range(len(wanted)), strict=True))[:: len(wanted) // 8]))
            found.setdefault(way, []).append(one)
    empty_slots(resident)
    return found


def _staircase(resident: Resident, stock: Stock, plan: Plan, say: Callable[[str], None]) -> Stairs:
    """Ask for all adapters of a burst at once, when they are cold and then when they are in their slots."""
    burst = stock.revisions[plan.adapters :]
    client, sampling = Client(resident, stock.store, burst), SampleConfig(max_tokens=TOKENS)
    vocabulary = int(resident.base.model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    prompts = Batch.random(BURST, PROMPT_TOKENS, steps=TOKENS, vocabulary=vocabulary).prompts
    found: Stairs = {}
    for way in (COLD, "in slots"):
        say(f"staircase: {way}")
        if way == COLD:
            stock.drop_from_page_cache(burst)
        heard = run_traffic(
            [Ask(0.0, number, prompt) for number, prompt in enumerate(prompts)],
            lambda ask: client.submit(ask.adapter, ask.prompt, sampling),
        )
        found[way] = sorted(heard, key=lambda one: one.first_s)
    return found


def _peft(
    setting: Setting, resident: Resident, pages: Sequence[Page], skipped: dict[str, str], say: Callable[[str], None]
) -> float | None:
    say("loading with PEFT")
    try:
        return peft_load_s(setting, resident.base, pages)
    except ImportError as error:
        skipped["peft"] = f"it is not installed ({error}); pip install 'mintbook[bench]' has it"
        return None


def _pass_rows(passes: Passes, plan: Plan) -> list[Row]:
    rows = []
    for way, found in passes.items():
        rows.append(Row(way, "mintbook", "speed", median(one.per_s for one in found), "adapters/s"))
        rows.append(Row(way, "mintbook", "cpu", median(one.cpu_s for one in found) * 1e3, "ms per load"))
        edges = median(one.last_over_first(plan.edge) for one in found)
        rows.append(Row(way, "mintbook", "last over first", edges, "ratio"))
        for stage in found[0].stages:
            took = median(one.stages[stage] for one in found) * 1e3
            rows.append(Row(way, "mintbook", stage, took, "ms per load"))
    return rows


def _stair_rows(stairs: Stairs) -> list[Row]:
    return [
        Row(f"{way}, {number} of {BURST}", "mintbook", "first token", heard.first_s * 1e3, "ms after the ask")
        for way, found in stairs.items()
        for number, heard in enumerate(found, 1)
        if way == COLD or number in (1, BURST)
    ]


def _ratios(passes: Passes, stairs: Stairs, plan: Plan, peft_s: float | None) -> dict[str, float]:
    speeds = {way: median(one.per_s for one in found) for way, found in passes.items()}
    ratios = {f"{way.replace(' ', '_')}_per_s": speed for way, speed in speeds.items()}
    ratios["last_over_first"] = median(one.last_over_first(plan.edge) for one in passes[CACHED])
    cold, warm = stairs[COLD], stairs["in slots"]
    ratios["staircase_16_over_1"] = cold[-1].first_s / cold[0].first_s
    ratios["staircase_cold_over_in_slots"] = cold[-1].first_s / warm[-1].first_s
    return ratios | ({"over_peft": speeds[CACHED] * peft_s} if peft_s else {})
