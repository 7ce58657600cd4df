"""``mintbook bench readiness``: what a wave of new adapters does to those who are served, under three policies."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from mintbook.bench.batch import Batch
from mintbook.bench.benchmark import Findings, Target
from mintbook.bench.bounds import bound_rows
from mintbook.bench.reference import Claim, Reference
from mintbook.bench.row import EVERY, Row
from mintbook.bench.setting import Setting
from mintbook.bench.stock import Stock, empty_slots, fill, load_bench_base, open_resident, temporary_folder
from mintbook.bench.traffic import Ask, Client, Heard, Preparation, quantile, run_traffic
from mintbook.config import SampleConfig
from mintbook.errors import MintbookError
from mintbook.model.base import Base
from mintbook.model.sites import linear_sites
from mintbook.prewarming import start_prewarm
from mintbook.resident import Resident
from mintbook.runtime import Runtime
from mintbook.store.store import Store

RANK = 8
OLD = 8
"""Tenants that are served all along."""
STALL_S = 1.0
LENGTH = 24
"""Tokens of a prompt."""
TOKENS = 12
"""Tokens of an answer."""
LOAD = 0.5
"""Share of what the engine can serve that the old tenants ask for."""
RESIDENT, OFF, ON, TWO_PHASE = "no loading", "admission off", "admission on", "two-phase"
POLICIES = (RESIDENT, OFF, ON, TWO_PHASE)
SAMPLING = SampleConfig(max_tokens=TOKENS)


@dataclass(frozen=True, slots=True)
class Wave:
    """What one round of a policy gave; ``load_p95_s`` is of the new adapters, ``prewarm_s`` of all together."""

    heard: list[Heard]
    load_p95_s: float
    prewarm_s: float

    def first_token(self, share: float, *, new: bool) -> float:
        """Return a quantile of the seconds to the first token."""
        return quantile([heard.first_s for heard in self.heard if heard.ask.new == new], share)

    @property
    def new_end_p95_s(self) -> float:
        """Seconds to the end of a new tenant's answer."""
        return quantile([heard.end_s for heard in self.heard if heard.ask.new], 0.95)

    @property
    def stalls(self) -> int:
        """Old tenants' requests that waited longer than a stall."""
        return sum(heard.first_s > STALL_S for heard in self.heard if not heard.ask.new)

    @property
    def refusals(self) -> int:
        """How often anyone had to come again."""
        return sum(heard.refusals for heard in self.heard)

    @property
    def old(self) -> int:
        """Requests of old tenants."""
        return sum(not heard.ask.new for heard in self.heard)


Waves = dict[str, list[Wave]]


@dataclass(frozen=True, slots=True)
class Plan:
    """How many tenants are new, for how long the traffic goes on, and how often each policy is tried."""

    new: int
    seconds: float
    rounds: int
    checked: int


def _plan(*, quick: bool) -> Plan:
    return Plan(8, 2.0, 2, 2) if quick else Plan(32, 20.0, 3, 16)


class Readiness:
    """The benchmark of readiness."""

    name = "readiness"
    targets: ClassVar[dict[str, Target]] = {"two_phase_over_no_loading_p95": Target(1.2)}

    def protocol(self, setting: Setting) -> str:
        """Return how it measures."""
        plan = _plan(quick=setting.quick)
        return (
            f"{'quick' if setting.quick else 'full'}; readiness, {setting.dtype}, {setting.threads} threads; {OLD} old "
            f"tenants ask at random times (Poisson) for {plan.seconds:g} s, {LOAD:.0%} of what the engine serves; a "
            f"third into it {plan.new} new tenants ask at once, their files dropped from the page cache; prompts of "
            f"{LENGTH} random tokens, answers of {TOKENS}; rank-{RANK} adapters on all linear layers; no loading: the "
            "same asks, all adapters in slots before; admission off: loads without bounds; on: 1 in flight, 4 in line, "
            "the rest refused and asked again after the hint; two-phase: prewarmed under the same bounds, and the new "
            f"tenants ask once that is done; times count from when an ask was due; stall: over {STALL_S:g} s; "
            f"{plan.rounds} interleaved rounds, medians of the ratios within a round; answers held against fp32 "
            "transformers."
        )

    def measure(self, setting: Setting, say: Callable[[str], None]) -> Findings:
        """Send the same traffic under every policy, check answers and bounds, and return rows and ratios."""
        plan = _plan(quick=setting.quick)
        say("opening the base")
        base = load_bench_base(setting)
        with temporary_folder() as folder, Store.open(folder) as store:
            stock = fill(store, base, linear_sites(base.model), [RANK] * (OLD + plan.new), say)
            bounds = bound_rows(setting, base, stock)
            waves = _waves(setting, base, stock, plan, say)
            pages = [store.page(revision) for revision in stock.revisions]
        claims = _claims(waves, plan)
        gap = Reference(base.folder, pages, setting.dtype).check(claims, say)
        rows = [*_rows(waves), *bounds]
        rows.append(Row(EVERY, EVERY, "answers held against the reference", len(claims), "answers"))
        rows.append(Row(EVERY, EVERY, "largest gap to the reference", gap, "nats"))
        return Findings(rows, _ratios(waves))


def _waves(setting: Setting, base: Base, stock: Stock, plan: Plan, say: Callable[[str], None]) -> Waves:
    room = {"slot_rows": RANK * (OLD + plan.new), "prefix_cache": False}
    found: Waves = {policy: [] for policy in POLICIES}
    with ExitStack() as opened:
        residents = {
            policy: opened.enter_context(open_resident(setting, base, room | _bounds(policy, plan.new)))
            for policy in POLICIES
        }
        say("finding out what the engine serves")
        per_s = [_served_per_s(resident, stock) for resident in residents.values()][-1]
        for number in range(plan.rounds):
            asks = _asks(base, plan, LOAD * per_s, seed=number)
            for policy in POLICIES[:: -1 if number % 2 else 1]:
                say(f"round {number + 1} of {plan.rounds}: {policy}")
                found[policy].append(_wave(residents[policy], stock, asks, policy))
    return found


def _bounds(policy: str, new: int) -> dict[str, int]:
    if policy == OFF:
        return {"loads_in_flight": new, "load_queue": new}
    return {"loads_in_flight": 1, "load_queue": 4}


def _prompts(base: Base, count: int) -> tuple[tuple[int, ...], ...]:
    vocabulary = int(base.model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    return Batch.random(count, LENGTH, steps=TOKENS, vocabulary=vocabulary).prompts


def _asks(base: Base, plan: Plan, rate: float, *, seed: int) -> list[Ask]:
    """Return what everyone asks: old tenants ``rate`` times a second, every new one once."""
    prompts, dice = _prompts(base, OLD + plan.new), random.Random(seed)
    asks, at = [], dice.expovariate(rate)
    while at < plan.seconds:
        adapter = dice.randrange(OLD)
        asks.append(Ask(at, adapter, prompts[adapter]))
        at += dice.expovariate(rate)
    return asks + [Ask(plan.seconds / 3, n, prompts[n], new=True) for n in range(OLD, OLD + plan.new)]


def _served_per_s(resident: Resident, stock: Stock) -> float:
    """Return how many requests of old tenants a second the engine serves when all are there at once."""
    client, prompts = Client(resident, stock.store, stock.revisions), _prompts(resident.base, OLD)
    for times in (1, 4):  # the first time warms up
        asks = [Ask(0.0, n % OLD, prompts[n % OLD]) for n in range(times * OLD)]
        heard = run_traffic(asks, lambda ask: client.submit(ask.adapter, ask.prompt, SAMPLING))
    return len(heard) / max(one.end_s for one in heard)


def _wave(resident: Resident, stock: Stock, asks: Sequence[Ask], policy: str) -> Wave:
    """Send the traffic once, from empty slots but for those that the policy takes as given."""
    store, new = stock.store, stock.revisions[OLD:]
    residency = empty_slots(resident)
    for revision in stock.revisions if policy == RESIDENT else stock.revisions[:OLD]:
        with residency.lease(revision, store):
            pass
    stock.drop_from_page_cache(new)
    client, spans = Client(resident, store, stock.revisions), [0.0]
    runtime = Runtime(resident.base, store, resident.engine, residency)

    def prewarm() -> None:
        began = time.perf_counter()
        start_prewarm(runtime, new, "Prewarming the new tenants").result()
        spans.append(time.perf_counter() - began)

    preparation = Preparation(next(ask.at_s for ask in asks if ask.new), prewarm) if policy == TWO_PHASE else None
    before = residency.counters().loads
    heard = run_traffic(asks, lambda ask: client.submit(ask.adapter, ask.prompt, SAMPLING), preparation)
    loads = residency.counters().loads - before
    if loads != (0 if policy == RESIDENT else len(new)):
        raise MintbookError(
            f"{policy}: {loads} loads for {len(new)} new adapters. No row was written; this is a fault of mintbook, "
            "please report it."
        )
    names = {revision.reference for revision in new}
    times = [one.times.total for one in residency.residents() if one.revision in names and one.times is not None]
    return Wave(heard, quantile(times, 0.95) if policy != RESIDENT else 0.0, spans[-1])


def _claims(waves: Waves, plan: Plan) -> list[Claim]:
    """Return answers of new and of old tenants, each one once."""
    claims: dict[bool, dict[Claim, None]] = {True: {}, False: {}}
    for policy, found in waves.items():
        for heard in (heard for wave in found for heard in wave.heard):
            claims[heard.ask.new][Claim(policy, heard.ask.prompt, heard.tokens, heard.ask.adapter)] = None
    return [claim for part in claims.values() for claim in list(part)[:: max(1, len(part) // plan.checked)]]


def _rows(waves: Waves) -> list[Row]:
    rows = []
    for policy, found in waves.items():

        def add(metric: str, values: Sequence[float], unit: str, policy: str = policy) -> None:
            rows.append(Row(policy, "mintbook", metric, median(values), unit))

        add("old, first token, p50", [wave.first_token(0.5, new=False) * 1e3 for wave in found], "ms")
        add("old, first token, p95", [wave.first_token(0.95, new=False) * 1e3 for wave in found], "ms")
        add("old, stalls", [wave.stalls for wave in found], "requests")
        add("new, first token, p95", [wave.first_token(0.95, new=True) * 1e3 for wave in found], "ms")
        add("new, answer, p95", [wave.new_end_p95_s * 1e3 for wave in found], "ms")
        add("new, load, p95", [wave.load_p95_s * 1e3 for wave in found], "ms")
        add("new, refusals", [wave.refusals for wave in found], "refusals")
        add("prewarming", [wave.prewarm_s * 1e3 for wave in found], "ms")
        add("old", [wave.old for wave in found], "requests")
    return rows


def _ratios(waves: Waves) -> dict[str, float]:
    def over(policy: str, share: float) -> float:
        pairs = zip(waves[policy], waves[RESIDENT], strict=True)
        return median(a.first_token(share, new=False) / b.first_token(share, new=False) for a, b in pairs)

    found = {}
    for policy in POLICIES[1:]:
        for share in (0.5, 0.95):
            name = policy.replace(" ", "_").replace("-", "_")
            found[f"{name}_over_no_loading_p{round(share * 100)}"] = over(policy, share)
    return found
